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
-- The server tracks all of KEYS for a client at every read by a script, and forgets a key again
-- when that client writes it. So the reads come before the writes where that costs no call more:
-- who gives the lock away is not to be told what becomes of it. A script that leaves its caller
-- holding or waiting reads KEYS[1] after its last write, so that the caller is told.

local function server_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The first fencing number that is free. Those after `used` up to `reserved` are given back, unless
-- others have come since: a release that runs late may meet a ghost of its value.
local function next_fence(floor, used, reserved)
  local fence = tonumber(floor)
  local last = redis.call('GET', KEYS[2])
  if last == reserved then
    last = used
  end
  return math.max(fence, tonumber(last or 0) + 1)
end

local function reserve(fence, count, counter_ttl)
  redis.call('SET', KEYS[2], string.format('%.0f', fence + count - 1), 'PX', counter_ttl)
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
-- the place of the queue or of the counter keeps no holder from letting go.
--   caller   who is not to be told, because the answer tells it
--   used, reserved   see next_fence
--   own      the channel of the connection that called
local function pass_on(floor, counter_ttl, caller, used, reserved, own)
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
      local is_counter, fence = pcall(next_fence, floor, used, reserved)
      if not is_counter then
        if value == caller then
          error(fence)
        end
        return nil
      end
      local lease = math.min(waiter.rest, waiter.ttl)
      local set = redis.pcall('SET', KEYS[1], value, 'PX', lease)
      if set.err then
        -- Out of memory: let the lock go free; a heartbeat takes it when there is room.
        return nil
      end
      reserve(fence, waiter.fences, counter_ttl)
      if value ~= caller then
        if own and own ~= waiter.channel then
          -- The server writes first to the client that had something to be written last. An empty
          -- message puts our own answer behind the grant, for which somebody waits.
          redis.pcall('PUBLISH', own, '')
        end
        -- Where an ACL forbids it, the waiter's heartbeat finds the grant.
        redis.pcall('PUBLISH', waiter.channel, string.format('%.0f\n%d\n%s\n%.0f\n%s\n%s',
          fence, waiter.fences, waiter.stamp, now - waiter.beat + lease, value, KEYS[1]))
      end
      return value, fence
    end
  end
end
