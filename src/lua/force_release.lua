-- Takes the lock from whoever has it; the first waiter gets it.
-- ARGV[1] floor of the fence (wall clock, us)   ARGV[2] how long the counter lives, ms
-- Returns 1 (there was a holder) or 0.
local held = redis.call('DEL', KEYS[1])
pass_on(ARGV[1], ARGV[2])
return held
