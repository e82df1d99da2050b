-- Passing the lock on to a waiter: shared by the scripts below.
-- KEYS as in waiters.lua

-- Where an ACL forbids it, the waiter's heartbeat finds the grant. In a cluster, a channel with a
-- hash tag is one of this server: what is published there does not go to all others.
local function publish(channel, message)
  local command = string.find(channel, '{', 1, true) and 'SPUBLISH' or 'PUBLISH'
  redis.pcall(command, channel, message)
end

-- Gives the lock to the first waiter that lives, and tells it. Returns its value and fencing
-- number, or nil if nobody waits, or only behind more dead ones than one call drops. The lock key
-- must be free or the caller's. What others put into the place of the queue or of the counter
-- keeps no holder from letting go.
-- A waiter that wants no number gets 0. The floor of a number is the server's clock: who lets go need not send its own for nothing.
--   caller   a waiter, who hears of trouble, and is not to be told of its grant, because the
--            answer tells it; nil: who lets go
--   used, reserved   see next_fence
--   own      the channel of the connection that called, if its answer is to come behind the grant
local function pass_on(caller, used, reserved, own)
  local ask = caller and redis.call or redis.pcall
  local floor
  for _ = 1, MOST_DEAD do
    local first = ask('ZPOPMIN', KEYS[3])
    local value = first[1]
    if not value then
      return nil
    end
    floor = floor or server_time()
    local now = math.floor(floor / 1000)
    local waiter = living(ask('HGET', KEYS[4], value), now)
    ask('HDEL', KEYS[4], value)
    if waiter then
      local fence = 0
      if waiter.fences > 0 then
        fence = next_fence(floor, used, reserved)
      end
      local lease = math.min(waiter.rest, waiter.ttl)
      -- Out of memory: let the lock go free; a heartbeat takes it when there is room.
      if not fence or ask('SET', KEYS[1], value, 'PX', lease).err then
        return nil
      end
      if waiter.fences > 0 then
        reserve(fence, waiter.fences)
      end
      if value ~= caller then
        if own and own ~= '' and own ~= waiter.channel then
          -- The server writes first to the client that had something to be written last. An empty
          -- message puts our own answer behind the grant, for which somebody waits.
          publish(own, '')
        end
        publish(waiter.channel, string.format('%.0f\n%d\n%s\n%.0f\n%s\n%s',
          fence, waiter.fences, waiter.stamp, now - waiter.beat + lease, value, KEYS[1]))
      end
      return value, fence
    end
  end
end
