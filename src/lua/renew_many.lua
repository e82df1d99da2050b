-- Extends those of several locks that are ours; never shortens one, never creates it. What is to be
-- said of the others, renew.lua tells.
-- KEYS lock keys
-- ARGV for each key: value, ttl (ms)
-- Returns for each key whether it was extended, 1 or 0.
local extended = {}
for i, key in ipairs(KEYS) do
  extended[i] = 0
  if redis.pcall('GET', key) == ARGV[2 * i - 1] then
    local ttl = ARGV[2 * i]
    -- The usual case in one call, from version 7.0 on. Only a server that may write is believed.
    if redis.pcall('PEXPIRE', key, ttl, 'GT') ~= 1 then
      local rest = redis.call('PTTL', key)
      redis.call('PEXPIRE', key, rest > tonumber(ttl) and string.format('%.0f', rest) or ttl)
    end
    extended[i] = 1
  end
end
-- A read after the last write: the server goes on telling this client of changes.
redis.call('EXISTS', unpack(KEYS))
return extended
