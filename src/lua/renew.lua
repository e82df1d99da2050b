-- Extends the lock if it is ours; never shortens it, never creates it. Continued by writable.lua
-- and renew_lost.lua.
-- KEYS[1] lock key
-- ARGV[1] value   ARGV[2] ttl, ms
-- Returns 1 (extended), 0 (another value), -1 (no such key).
local held = redis.pcall('GET', KEYS[1])
if held == ARGV[1] then
  local rest = redis.call('PTTL', KEYS[1])
  -- Written even if the key lives that long already: only a server that may write is believed.
  local longer = rest > tonumber(ARGV[2]) and string.format('%.0f', rest) or ARGV[2]
  redis.call('PEXPIRE', KEYS[1], longer)
  -- A read after the last write: the server goes on telling this client of changes.
  redis.call('EXISTS', KEYS[1])
  return 1
end
