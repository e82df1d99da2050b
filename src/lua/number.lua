-- Takes the fencing numbers of a lock that was just taken. The usual case: the clock is ahead of
-- the counter, by which one call is enough. Continued by fence.lua and number_beyond.lua; before
-- these, no function is made: that takes as long as a command.
-- KEYS[2] fencing counter   writer_key  the key of the claim that wrote it, if that is noted
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] first fencing number that is wanted: the floor (wall
-- clock, us)   ARGV[4] the last, if more than one is wanted
-- Returns 1: the numbers from the floor on were taken.
local floor, last = ARGV[3], nil
-- Numbers of 16 digits are in the order of their texts; the floor is one, between 2001 and 2255.
if #floor == 16 and floor < '9' then
  last = redis.pcall('SET', KEYS[2], ARGV[4] or floor, 'PX', COUNTER_TTL, 'GET')
  if not last or (#last == 16 and last < floor and not string.find(last, '%D')) then
    if writer_key then
      redis.call('SET', writer_key, ARGV[1], 'PX', COUNTER_TTL)
    end
    return 1
  end
end
