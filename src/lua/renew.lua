-- Extends the lock if it is ours; never shortens it, never creates it.
-- KEYS[1] lock key
-- ARGV[1] value   ARGV[2] ttl, ms
-- Returns 1 (extended), 0 (another value), -1 (no such key).
local value = redis.call('GET', KEYS[1])
if value == ARGV[1] then
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    -- A read after the last write: the server goes on telling this client of changes.
    redis.call('EXISTS', KEYS[1])
  end
  return 1
end
return value and 0 or -1
