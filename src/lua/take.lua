-- Takes the lock if it is free: shared by the scripts below.
-- KEYS[1] lock key
-- ARGV[1] value   ARGV[2] ttl, ms
-- holder  who had it, if it was not free
local holder
if redis.REDIS_VERSION_NUM then
  -- From version 7.0 on, which tells its number. No value takes less time than 'OK'.
  holder = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2], 'GET')
elseif not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  holder = redis.call('GET', KEYS[1]) or ''
end
