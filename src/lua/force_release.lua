-- Takes the lock from whoever has it; the first waiter gets it.
-- Returns 1 (there was a holder) or 0.
local held = redis.call('DEL', KEYS[1])
pass_on()
return held
