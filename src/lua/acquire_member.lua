-- Takes the lock on one server of a quorum if it is free there, and gives it a fencing number.
-- Continues take.lua, continued by number.lua.
-- KEYS[1] lock key   KEYS[2] fencing counter   KEYS[3] value of the claim that wrote the counter
-- KEYS[4], KEYS[5] queue and waiters: named for the same reason as by acquire.lua
-- ARGV as in number.lua
-- Returns what acquire.lua does, or {2, 0}: the value has the counter already. A quorum asks a
-- server that granted no second time under a value, so this one is asked under two names, and must
-- not count twice. A key that the queue gave to the value has not come with a number.
if holder then
  if holder ~= ARGV[1] then
    return {0, redis.call('PTTL', KEYS[1])}
  end
  if redis.pcall('GET', KEYS[3]) == ARGV[1] then
    return {2, 0}
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local writer_key = KEYS[3]
