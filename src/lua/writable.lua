-- Whose the lock is, told by a server that may write: shared by the scripts below.
-- A replica, and a master that may not write for now, can be behind the server that grants locks.
-- Whatever they say of the lock key says nothing (P13).

-- Whether an answer is an error, other than that of a key of another type.
local function is_failure(answer)
  return type(answer) == 'table' and answer.err
    and not string.find(answer.err, 'WRONGTYPE', 1, true)
end

-- Raises unless this server may write. No string and no hash has this field, so nothing changes;
-- but a server that may not write says so before it looks at the key. Memory is not asked for.
local function ensure_writable(value)
  local written = redis.pcall('HDEL', KEYS[1], value)
  if is_failure(written) then
    error(written.err, 0)
  end
end

-- Raises unless this server is believed that the lock key holds `held`, as redis.pcall('GET') told,
-- and not `value`. Nothing is false, a key of another type a table.
local function ensure_believed(held, value)
  ensure_writable(value)
  if is_failure(held) then
    error(held.err, 0)
  end
end
