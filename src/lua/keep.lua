-- At the end of a stretch of local hand-overs: passes the lock on if somebody else waits, else
-- keeps it for its full TTL.
-- ARGV[1] value   ARGV[2] floor of the fence (wall clock, us)   ARGV[3] how long the counter lives
-- ARGV[4] the last fencing number in use if more had been reserved, else empty
-- ARGV[5] the last that had been reserved   ARGV[6] the channel of this connection
-- ARGV[7] ttl, ms   ARGV[8] how many fencing numbers to reserve
-- Returns {1, first fencing number} (kept), {0, 0} (passed on), {-1, 0} (not ours any more) or
-- {3, 0} (the counter is of no use, so the lock cannot be kept).
if not is_held_by(ARGV[1]) then
  return {-1, 0}
end
if pass_on(ARGV[2], ARGV[3], nil, ARGV[4], ARGV[5], ARGV[6]) then
  return {0, 0}
end
redis.call('PEXPIRE', KEYS[1], ARGV[7])
local fence = next_fence(ARGV[2], ARGV[4], ARGV[5])
if not fence then
  return {3, 0}
end
reserve(fence, ARGV[8], ARGV[3])
redis.call('EXISTS', KEYS[1])
return {1, fence}
