-- Tells whether the lock is ours, and changes nothing.
-- KEYS[1] lock key
-- ARGV[1] value
-- Returns its PTTL (-1 without one), -2 (no such key) or -3 (another value).
local is_ours, other = is_held_by(ARGV[1])
if is_ours then
  -- Nobody but a server that may write is believed a "yes", either.
  ensure_writable(ARGV[1])
  return redis.call('PTTL', KEYS[1])
end
return other and -3 or -2
