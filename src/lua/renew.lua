-- Extends the lock if it is ours; never shortens it, never creates it.
-- KEYS[1] lock key
-- ARGV[1] value   ARGV[2] ttl, ms
-- Returns 1 (extended), 0 (another value), -1 (no such key).
local is_ours, other = is_held_by(ARGV[1])
if not is_ours then
  return other and 0 or -1
end
-- Written even if the key lives that long already: only a server that may write is believed.
local rest = math.max(redis.call('PTTL', KEYS[1]), ARGV[2])
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', rest))
-- A read after the last write: the server goes on telling this client of changes.
redis.call('EXISTS', KEYS[1])
return 1
