-- Takes the lock on one server of a quorum if it is free there, and gives it a fencing number.
-- KEYS[1] lock key   KEYS[2] fencing counter   KEYS[3] value of the claim that wrote the counter
-- KEYS[4], KEYS[5] queue and waiters: named for the same reason as by acquire.lua
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] floor of the fence (wall clock, us)
-- ARGV[4] how many fencing numbers to reserve   ARGV[5] how long the counter lives, ms
-- Returns {1, first fencing number}, {0, PTTL of the key that is in the way}, {3, 0}: the counter
-- is of no use, or {2, 0}: the value is here already. A quorum asks each server once for each
-- value, so this server is asked under two names, and must not count twice.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  if redis.call('GET', KEYS[1]) == ARGV[1] then
    return {2, 0}
  end
  return {0, redis.call('PTTL', KEYS[1])}
end
local fence = next_fence(ARGV[3])
if not fence then
  redis.call('DEL', KEYS[1])
  return {3, 0}
end
reserve(fence, ARGV[4], ARGV[5])
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[5])
-- A read after the last write: now the server tells this client when the key changes.
redis.call('EXISTS', KEYS[1])
return {1, fence}
