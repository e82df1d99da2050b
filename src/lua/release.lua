-- Gives up the lock if it is ours: to the first waiter if there is one, else frees it.
-- ARGV[1] value   ARGV[2] the channel of this connection; none, or empty: see queue.lua
-- ARGV[3] the last fencing number in use if more had been reserved, else none
-- ARGV[4] the last that had been reserved
-- held  what the lock key holds, from early_release.lua
-- Returns 1 (given up) or 0 (not ours any more).
if held ~= ARGV[1] then
  ensure_believed(held, ARGV[1])
  return 0
end
if not pass_on(nil, ARGV[3], ARGV[4], ARGV[2]) then
  -- Only our own reservation is taken back: see next_fence.
  if ARGV[3] and redis.pcall('GET', KEYS[2]) == ARGV[4] then
    -- Not worth failing for when memory is short.
    redis.pcall('SET', KEYS[2], ARGV[3], 'PX', COUNTER_TTL)
  end
  redis.call('DEL', KEYS[1])
end
return 1
