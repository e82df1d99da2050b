-- The rest of number.lua: the counter is ahead of the clock, or of no use, or `last` is the error
-- of a call that changed nothing (another type; Redis before 6.2, which has no SET with GET).
-- Returns {1, first fencing number}, or {3, 0}: the counter is of no use.
local counter = type(last) == 'string' and last or redis.pcall('GET', KEYS[2])
local fence = number_after(counter, floor)
if not fence then
  if type(last) == 'string' then
    -- P8: what no number can follow is to be found as it was.
    redis.call('SET', KEYS[2], last, 'PX', COUNTER_TTL)
  end
  redis.call('DEL', KEYS[1])
  return {3, 0}
end
reserve(fence, (ARGV[4] or floor) - floor + 1)
if writer_key then
  redis.call('SET', writer_key, ARGV[1], 'PX', COUNTER_TTL)
end
return {1, fence}
