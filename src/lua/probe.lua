-- Tells which of the commands that the scripts need cannot be called here: for want of rights, as a
-- rule. Nobody has a key of this name, and nothing is written.
-- KEYS[1] or ARGV[1] a name: the latter where the user may not touch such a key. A server asks for
-- the right to the command first, so the answer is the same.
-- ARGV[2] onwards: commands without arguments that are needed beside those of the scripts
-- Returns their names.
local name = KEYS[1] or ARGV[1]
local calls = {
  {'DEL', name}, {'EXISTS', name}, {'GET', name}, {'HDEL', name, 'x'}, {'HGET', name, 'x'},
  -- The values are odd in number: that is looked at after the rights.
  {'HSET', name, 'x', 'x', 'x'}, {'PEXPIRE', name, 1}, {'PTTL', name}, {'SET', name, 'x', 'XX'},
  {'TIME'}, {'ZADD', name, 'XX', 1, 'x'}, {'ZPOPMIN', name}, {'ZRANGE', name, 0, 0},
  {'ZREM', name, 'x'},
}
for i = 2, #ARGV do
  calls[#calls + 1] = {ARGV[i]}
end
local missing = {}
for _, call in ipairs(calls) do
  local answer = redis.pcall(unpack(call))
  local text = type(answer) == 'table' and answer.err or ''
  -- "can't run this command" before version 7.2, "no permissions to run the" since then, and
  -- "Unknown Redis command" where it was renamed. Other trouble is not for good, or the key's.
  if string.find(text, ' run th') or string.find(text, 'Unknown Redis command') then
    missing[#missing + 1] = call[1]
  end
end
return missing
