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
-- Others can write here, too: what no waiter of ours would write is nobody's record.
-- The server tracks all of KEYS for a client at every read by a script, and forgets a key again
-- when that client writes it. So the reads come before the writes where that costs no call more:
-- who gives the lock away is not to be told what becomes of it. A script that leaves its caller
-- holding or waiting reads KEYS[1] after its last write, so that the caller is told.

local LONGEST_LIFE = 3000
-- So many dead waiters are dropped in one call, which so takes some milliseconds at most.
local MOST_DEAD = 1000

local function server_time()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The fields of a record, and for how long the waiter still lives; nil if it does not.
local function living(record, now)
  local beat, life, ttl, fences, stamp, channel
  if type(record) == 'string' then
    beat, life, ttl, fences, stamp, channel =
      string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%d+) (redlease:%S+)$')
  end
  if not beat then
    return nil
  end
  beat, life, ttl, fences = tonumber(beat), tonumber(life), tonumber(ttl), tonumber(fences)
  local rest = math.min(life, beat + life - now)
  if rest <= 0 or life > LONGEST_LIFE or ttl < 1 or fences < 1 or fences > LARGEST_BLOCK then
    return nil
  end
  return {beat = beat, rest = rest, ttl = ttl, fences = fences, stamp = stamp, channel = channel}
end

-- Gives the lock to the first waiter that lives, and tells it. Returns its value and fencing
-- number, or nil if nobody waits, or only behind more dead ones than one call drops. The lock key
-- must be free or the caller's. What others put into the place of the queue or of the counter
-- keeps no holder from letting go.
--   caller   a waiter, who hears of trouble, and is not to be told of its grant, because the
--            answer tells it; nil: who lets go
--   used, reserved   see next_fence
--   own      the channel of the connection that called
local function pass_on(floor, counter_ttl, caller, used, reserved, own)
  local ask = caller and redis.call or redis.pcall
  local now
  for _ = 1, MOST_DEAD do
    local first = ask('ZPOPMIN', KEYS[3])
    local value = first[1]
    if not value then
      return nil
    end
    now = now or math.floor(server_time() / 1000)
    local waiter = living(ask('HGET', KEYS[4], value), now)
    ask('HDEL', KEYS[4], value)
    if waiter then
      local fence = next_fence(floor, used, reserved)
      local lease = math.min(waiter.rest, waiter.ttl)
      -- Out of memory: let the lock go free; a heartbeat takes it when there is room.
      if not fence or ask('SET', KEYS[1], value, 'PX', lease).err then
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
