-- Leaves the queue for good, and passes on a lock that was granted meanwhile.
-- ARGV[1] value   ARGV[2] floor of the fence (wall clock, us)   ARGV[3] how long the counter lives
-- Returns 1 (had been granted) or 0.
redis.pcall('ZREM', KEYS[3], ARGV[1])
redis.pcall('HDEL', KEYS[4], ARGV[1])
if not is_held_by(ARGV[1]) then
  return 0
end
if not pass_on(ARGV[2], ARGV[3]) then
  redis.call('DEL', KEYS[1])
end
return 1
