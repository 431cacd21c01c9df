"""The barrier's rule, its table, and its scripts for Redis, as DTM has them: no I/O, nothing of a driver."""
