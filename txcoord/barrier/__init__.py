"""The barrier's rule and its table, as DTM has them: no I/O, nothing of a driver."""
