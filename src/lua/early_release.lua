-- The usual case of release.lua: the lock is ours, and nobody waits. Before what the other cases
-- need: making its functions takes longer than this.
local held = redis.pcall('GET', KEYS[1])
if held == ARGV[1] and not ARGV[3] and redis.pcall('EXISTS', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[1])
  return 1
end
