-- The fencing counter: shared by the scripts below.
-- KEYS[2] fencing counter
-- Numbers are below 2^53: from there on a double cannot tell one from the next.

local LARGEST_BLOCK = 1000000

-- The first fencing number that is free; nil if the counter holds something that no number can
-- follow, or one with no room for a block behind it: then numbers would repeat (P8). Those after
-- `used` up to `reserved` are given back, unless others have come since: a release that runs late
-- may meet a ghost of its value.
local function next_fence(floor, used, reserved)
  local last = redis.pcall('GET', KEYS[2])
  if last == reserved then
    last = used
  end
  if last and (type(last) ~= 'string' or not string.find(last, '^%d+$')) then
    return nil
  end
  local fence = math.max(tonumber(floor), tonumber(last or 0) + 1)
  return fence <= 2 ^ 53 - LARGEST_BLOCK and fence or nil
end

local function reserve(fence, count, counter_ttl)
  -- tostring() would round a number of 16 digits.
  redis.call('SET', KEYS[2], string.format('%.0f', fence + count - 1), 'PX', counter_ttl)
end
