-- Takes the lock from whoever has it.
-- KEYS[1] lock key
-- Returns 1 (there was a holder) or 0.
return redis.call('DEL', KEYS[1])
