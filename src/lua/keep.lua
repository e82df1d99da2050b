-- At the end of a stretch of local hand-overs: passes the lock on if somebody else waits, else
-- keeps it for its full TTL.
-- ARGV[1] value   ARGV[2] the channel of this connection   ARGV[3], ARGV[4] as in release.lua, but
-- empty, not left out   ARGV[5] floor of the fence (wall clock, us)   ARGV[6] ttl, ms
-- ARGV[7] how many fencing numbers to reserve
-- Returns {1, first fencing number} (kept), {0, 0} (passed on), {-1, 0} (not ours any more) or
-- {3, 0} (the counter is of no use, so the lock cannot be kept).
local held = redis.pcall('GET', KEYS[1])
if held ~= ARGV[1] then
  ensure_believed(held, ARGV[1])
  return {-1, 0}
end
if pass_on(nil, ARGV[3], ARGV[4], ARGV[2]) then
  return {0, 0}
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local fence = next_fence(ARGV[5], ARGV[3], ARGV[4])
if not fence then
  return {3, 0}
end
reserve(fence, ARGV[7])
return {1, fence}
