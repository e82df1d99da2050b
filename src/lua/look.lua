-- Tells whether the lock is ours, and changes nothing.
-- KEYS[1] lock key
-- ARGV[1] value
-- Returns its PTTL (-1 without one), -2 (no such key) or -3 (another value).
local held = redis.pcall('GET', KEYS[1])
-- Nobody but a server that may write is believed a "yes", either.
ensure_believed(held, ARGV[1])
if held == ARGV[1] then
  return redis.call('PTTL', KEYS[1])
end
return held and -3 or -2
