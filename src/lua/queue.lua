-- The queue of waiters: what the scripts below share.
-- KEYS[1] lock key   KEYS[2] fencing counter
-- KEYS[3] queue: a sorted set of values by arrival   KEYS[4] waiters: a hash from value to record
-- A record: "<beat> <life> <ttl> <fences> <stamp> <channel>"
--   beat     when its last heartbeat ran, ms of the server's clock
--   life     how long it counts as alive after that, ms
--   ttl      the TTL of the lock that it wants, ms
--   fences   how many fencing numbers to reserve for it
--   stamp    the waiter's own clock when it sent that heartbeat; only ever handed back
--   channel  where it hears of a grant
-- Reads of KEYS[3] and KEYS[4] are followed by a write to them, so that the server does not
-- track them for this client; KEYS[1] is read after its last write, so that it does.

local function server_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Reserves fencing numbers, and returns the first.
local function reserve(floor, count, counter_ttl)
  local fence = tonumber(floor)
  local last = tonumber(redis.call('GET', KEYS[2]) or 0)
  if last >= fence then
    fence = last + 1
  end
  redis.call('SET', KEYS[2], string.format('%.0f', fence + count - 1), 'PX', counter_ttl)
  return fence
end

-- The fields of a record, and for how long the waiter still lives; nil if it does not.
local function living(record, now)
  local beat, life, ttl, fences, stamp, channel
  if type(record) == 'string' then
    beat, life, ttl, fences, stamp, channel =
      string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  end
  if not beat then
    return nil
  end
  local rest = math.min(tonumber(life), tonumber(beat) + tonumber(life) - now)
  if rest <= 0 then
    return nil
  end
  return {beat = tonumber(beat), rest = rest, ttl = tonumber(ttl), fences = tonumber(fences),
    stamp = stamp, channel = channel}
end

-- Gives the lock to the first waiter that lives, and tells it. Returns its value and fencing
-- number, or nil if nobody waits. The lock key must be free or the caller's. What others put into
-- the queue's place is nobody who waits, and keeps no holder from letting go.
local function pass_on(floor, counter_ttl, caller)
  local now
  while true do
    local first = redis.pcall('ZPOPMIN', KEYS[3])
    local value = first[1]
    if not value then
      return nil
    end
    now = now or math.floor(server_time() / 1000)
    local waiter = living(redis.pcall('HGET', KEYS[4], value), now)
    redis.pcall('HDEL', KEYS[4], value)
    if waiter then
      local lease = math.min(waiter.rest, waiter.ttl)
      local set = redis.pcall('SET', KEYS[1], value, 'PX', lease)
      if set.err then
        -- Out of memory: let the lock go free; a heartbeat takes it when there is room.
        return nil
      end
      local fence = reserve(floor, waiter.fences, counter_ttl)
      if value ~= caller then
        -- Where an ACL forbids it, the waiter's heartbeat finds the grant.
        redis.pcall('PUBLISH', waiter.channel, string.format('%.0f\n%d\n%s\n%.0f\n%s\n%s',
          fence, waiter.fences, waiter.stamp, now - waiter.beat + lease, value, KEYS[1]))
      end
      return value, fence
    end
  end
end
