-- The fencing counter: shared by the scripts below.
-- KEYS[2] fencing counter
-- Numbers are below 2^53: from there on a double cannot tell one from the next.

-- The first number that is free behind the last in use, or at the floor; nil if that is something
-- that no number can follow, or one with no room for a block behind it: then numbers would repeat
-- (P8).
local function number_after(last, floor)
  if last and (type(last) ~= 'string' or not string.find(last, '^%d+$')) then
    return nil
  end
  local fence = math.max(tonumber(floor), tonumber(last or 0) + 1)
  return fence <= 2 ^ 53 - LARGEST_BLOCK and fence or nil
end

-- The first fencing number that is free; nil as above. Those after `used` up to `reserved` are
-- given back, unless others have come since: a release that runs late may meet a ghost of its
-- value.
local function next_fence(floor, used, reserved)
  local last = redis.pcall('GET', KEYS[2])
  if last == reserved then
    last = used
  end
  return number_after(last, floor)
end

local function reserve(fence, count)
  -- tostring() would round a number of 16 digits.
  redis.call('SET', KEYS[2], string.format('%.0f', fence + count - 1), 'PX', COUNTER_TTL)
end
