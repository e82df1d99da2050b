-- Frees the lock if it is ours.
-- KEYS[1] lock key
-- ARGV[1] value
-- Returns 1 (freed) or 0 (not ours any more).
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
