"""Drives owned transactions: decide, act, record.

Read in this order: `advance` (the loop that drives one transaction), `live` (what is in memory of it), `journal` (how
its changes become durable). Then `engine` (all of one process, and what the service asks of it), `ownership` (the node
and its lease), `recovery` (what is taken over, and what is released) with its `gate`. `clock` and `settings` are
handed in.
"""
