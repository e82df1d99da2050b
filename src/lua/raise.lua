-- Writes the fencing numbers of a quorum's grant to one of its servers, if the lock is ours there
-- and nobody else can have reserved as high a number.
-- KEYS as in acquire_member.lua
-- ARGV[1] value   ARGV[2] first fencing number   ARGV[3] last fencing number
-- Returns 1 (the numbers are ours on this server), 0, or -1 (the counter is of no use).
ensure_writable(ARGV[1])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
local free = next_fence(ARGV[2])
if not free then
  return -1
end
if free > tonumber(ARGV[2]) then
  -- Without either check two holders could have the same number: somebody else's, or one that
  -- somebody else had before a late grant of ours went beyond it.
  if redis.call('GET', KEYS[3]) ~= ARGV[1] or free - 1 > tonumber(ARGV[3]) then
    return 0
  end
end
redis.call('SET', KEYS[2], ARGV[3], 'PX', COUNTER_TTL)
redis.call('SET', KEYS[3], ARGV[1], 'PX', COUNTER_TTL)
return 1
