-- What is agreed of the fencing counter: shared by the scripts below.

-- How long it outlives its last use: 7 days, ms.
local COUNTER_TTL = '604800000'
local LARGEST_BLOCK = 1000000
