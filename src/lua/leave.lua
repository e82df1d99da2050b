-- Leaves the queue for good, and passes on a lock that was granted meanwhile.
-- ARGV[1] value
-- Returns 1 (had been granted) or 0.
redis.pcall('ZREM', KEYS[3], ARGV[1])
redis.pcall('HDEL', KEYS[4], ARGV[1])
local held = redis.pcall('GET', KEYS[1])
if held ~= ARGV[1] then
  ensure_believed(held, ARGV[1])
  return 0
end
if not pass_on() then
  redis.call('DEL', KEYS[1])
end
return 1
