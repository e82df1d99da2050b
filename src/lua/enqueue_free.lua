-- The rest of enqueue.lua: the lock is free, or the waiter's own, or not to be read.
if type(holder) == 'table' then
  ensure_writable(value)
  return holder
end
local fence = ARGV[4] == '0' and 0 or next_fence(ARGV[3])
if not fence then
  ensure_writable(value)
  return {3, 0}
end
local granted = 2
if holder == value then
  redis.call('ZREM', KEYS[3], value)
  redis.call('HDEL', KEYS[4], value)
  if fence > 0 then
    reserve(fence, ARGV[4])
  end
else
  take_place()
  -- Nobody released to the queue: a holder's key expired, or was deleted by others.
  local heir
  heir, fence = pass_on(value)
  if heir ~= value then
    return wait()
  end
  granted = 1
end
-- The caller counts its lease from this request, and for the full TTL.
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {granted, fence}
