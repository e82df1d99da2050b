-- Takes a place in the queue, or keeps it: the heartbeat of a waiter. Idempotent for a value.
-- ARGV[1] value   ARGV[2] ttl, ms   ARGV[3] floor of the fence (wall clock, us)
-- ARGV[4] how many fencing numbers to reserve   ARGV[5] how long the counter lives, ms
-- ARGV[6] how long the waiter lives without another heartbeat, ms   ARGV[7] its stamp
-- ARGV[8] its channel   ARGV[9] how long the queue lives without a heartbeat, ms
-- Returns {1, first fencing number} (granted now), {2, first fencing number} (had been granted
-- meanwhile), {3, 0} (the counter is of no use), or {0, whether it is the first of the queue, PTTL
-- of the lock key}.
local value = ARGV[1]
local holder = redis.pcall('GET', KEYS[1])
if type(holder) == 'table' then
  ensure_writable(value)
  return holder
end
local granted = 0
local fence
if not holder or holder == value then
  fence = next_fence(ARGV[3])
  if not fence then
    ensure_writable(value)
    return {3, 0}
  end
end
if holder == value then
  granted = 2
  redis.call('ZREM', KEYS[3], value)
  redis.call('HDEL', KEYS[4], value)
  reserve(fence, ARGV[4], ARGV[5])
else
  local micros = server_time()
  local now = math.floor(micros / 1000)
  redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', micros), value)
  redis.call('HSET', KEYS[4], value, string.format('%.0f %s %s %s %s %s',
    now, ARGV[6], ARGV[2], ARGV[4], ARGV[7], ARGV[8]))
  if not holder then
    -- Nobody released to the queue: a holder's key expired, or was deleted by others.
    local heir, its_fence = pass_on(ARGV[3], ARGV[5], value)
    if heir == value then
      granted = 1
      fence = its_fence
    end
  end
end
if granted > 0 then
  -- The caller counts its lease from this request, and for the full TTL.
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('EXISTS', KEYS[1])
  return {granted, fence}
end
local now = math.floor(server_time() / 1000)
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
redis.call('PEXPIRE', KEYS[3], ARGV[9])
redis.call('PEXPIRE', KEYS[4], ARGV[9])
if not first then
  -- More dead ones may follow: the caller is to ask again at once, as for a key that expires now.
  return {0, 1, 0}
end
return {0, first == value and 1 or 0, ttl}
