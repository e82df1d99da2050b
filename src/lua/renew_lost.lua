-- The rest of renew.lua: the lock is not ours any more.
ensure_believed(held, ARGV[1])
return held and 0 or -1
