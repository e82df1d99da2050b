-- Gives a server of a quorum the key that it lost, if the key is free there, and the fencing
-- counter, if that is behind.
-- KEYS as in acquire_member.lua
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] first fencing number   ARGV[4] last fencing number
-- Returns 1 (the lock is ours) or 0 (somebody else's).
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
    and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
-- A counter that is of no use stays: this server gives out no numbers then.
if next_fence(ARGV[3]) == tonumber(ARGV[3]) then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', COUNTER_TTL)
  redis.call('SET', KEYS[3], ARGV[1], 'PX', COUNTER_TTL)
end
return 1
