-- Takes the lock if it is free, and gives it a fencing number. Continues take.lua, continued by
-- number.lua.
-- KEYS[1] lock key   KEYS[2] fencing counter   KEYS[3], KEYS[4] as in queue.lua: not touched, but
-- named, so that a user who may not release the lock is not granted it
-- ARGV as in number.lua
-- Returns 1 or {1, first fencing number} as number.lua does, {0, PTTL of the key that is in the
-- way}, or {3, 0}: the counter is of no use.
if holder then
  if holder ~= ARGV[1] then
    return {0, redis.call('PTTL', KEYS[1])}
  end
  -- Our own value: an attempt whose reply was lost did succeed. The caller counts its lease from
  -- this request, so the key must last as long from here.
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local writer_key
