-- Takes a place in the queue, or keeps it: the heartbeat of a waiter. Idempotent for a value.
-- Continued by enqueue_free.lua where the lock is not somebody else's.
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] floor of the fence (wall clock, us)
-- ARGV[4] how many fencing numbers to reserve   ARGV[5] how long the waiter lives without another
-- heartbeat, ms   ARGV[6] its stamp   ARGV[7] its channel
-- Returns {1, first fencing number} (granted now), {2, first fencing number} (had been granted
-- meanwhile), {3, 0} (the counter is of no use), or {0, whether it is the first of the queue, PTTL
-- of the lock key}.
-- A waiter is told when the lock key changes: the server tracks all of KEYS for it at every read,
-- and forgets a key again when it writes it. So KEYS[1] is read after its last write if the waiter
-- goes on waiting, and not if it is granted the lock; and the queue, which all waiters write, is
-- written last.

-- How long the queue lives without a heartbeat, ms: longer than any waiter.
local QUEUE_TTL = '10000'
local value = ARGV[1]
local micros = server_time()
local now = math.floor(micros / 1000)

local function take_place()
  redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', micros), value)
  redis.call('HSET', KEYS[4], value, string.format('%.0f %s %s %s %s %s',
    now, ARGV[5], ARGV[2], ARGV[4], ARGV[6], ARGV[7]))
end

local function wait()
  local first
  for _ = 1, MOST_DEAD do
    first = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
    if not first or first == value or living(redis.call('HGET', KEYS[4], first), now) then
      break
    end
    redis.call('ZREM', KEYS[3], first)
    redis.call('HDEL', KEYS[4], first)
    first = nil
  end
  local ttl = redis.call('PTTL', KEYS[1])
  redis.call('PEXPIRE', KEYS[3], QUEUE_TTL)
  redis.call('PEXPIRE', KEYS[4], QUEUE_TTL)
  if not first then
    -- More dead ones may follow: the caller is to ask again at once, as for a key that expires
    -- now.
    return {0, 1, 0}
  end
  return {0, first == value and 1 or 0, ttl}
end

local holder = redis.pcall('GET', KEYS[1])
if type(holder) == 'string' and holder ~= value then
  take_place()
  return wait()
end
