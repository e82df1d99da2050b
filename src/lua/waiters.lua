-- The queue of waiters, and what is known of each: shared by the scripts below.
-- KEYS[1] lock key   KEYS[2] fencing counter
-- KEYS[3] queue: a sorted set of values by arrival   KEYS[4] waiters: a hash from value to record
-- A record: "<beat> <life> <ttl> <fences> <stamp> <channel>"
--   beat     when its last heartbeat ran, ms of the server's clock
--   life     how long it counts as alive after that, ms
--   ttl      the TTL of the lock that it wants, ms
--   fences   how many fencing numbers to reserve for it; 0 in a quorum, which takes its own
--   stamp    the waiter's own clock when it sent that heartbeat; only ever handed back
--   channel  where it hears of a grant
-- Others can write here, too: what no waiter of ours would write is nobody's record.

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
  if rest <= 0 or life > LONGEST_LIFE or ttl < 1 or fences > LARGEST_BLOCK then
    return nil
  end
  return {beat = beat, rest = rest, ttl = ttl, fences = fences, stamp = stamp, channel = channel}
end
