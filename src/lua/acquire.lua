-- Takes the lock if it is free, and gives it a fencing number.
-- KEYS[1] lock key   KEYS[2] fencing counter   KEYS[3], KEYS[4] as in queue.lua: not touched, but
-- named, so that a user who may not release the lock is not granted it
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] floor of the fence (wall clock, us)
-- ARGV[4] how many fencing numbers to reserve   ARGV[5] how long the counter lives, ms
-- Returns {1, first fencing number}, {0, PTTL of the key that is in the way}, or {3, 0}: the
-- counter is of no use.
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  -- Our own value: an attempt whose reply was lost did succeed. The caller counts its lease from
  -- this request, so the key must last as long from here.
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return {0, redis.call('PTTL', KEYS[1])}
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local fence = next_fence(ARGV[3])
if not fence then
  redis.call('DEL', KEYS[1])
  return {3, 0}
end
reserve(fence, ARGV[4], ARGV[5])
-- A read after the last write: now the server tells this client when the key changes.
redis.call('EXISTS', KEYS[1])
return {1, fence}
