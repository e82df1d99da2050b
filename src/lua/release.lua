-- Gives up the lock if it is ours: to the first waiter if there is one, else frees it.
-- ARGV[1] value   ARGV[2] floor of the fence (wall clock, us)   ARGV[3] how long the counter lives
-- ARGV[4] the last fencing number in use if more had been reserved, else empty
-- ARGV[5] the last that had been reserved   ARGV[6] the channel of this connection
-- Returns 1 (given up) or 0 (not ours any more).
if not is_held_by(ARGV[1]) then
  return 0
end
if not pass_on(ARGV[2], ARGV[3], nil, ARGV[4], ARGV[5], ARGV[6]) then
  -- Only our own reservation is taken back: see next_fence.
  if ARGV[4] ~= '' and redis.pcall('GET', KEYS[2]) == ARGV[5] then
    -- Not worth failing for when memory is short.
    redis.pcall('SET', KEYS[2], ARGV[4], 'PX', ARGV[3])
  end
  redis.call('DEL', KEYS[1])
end
return 1
