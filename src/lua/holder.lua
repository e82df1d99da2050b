-- Tells who has the lock.
-- KEYS[1] lock key
-- Returns {value, PTTL} or nil.
local value = redis.call('GET', KEYS[1])
return value and {value, redis.call('PTTL', KEYS[1])}
