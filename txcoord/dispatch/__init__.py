"""Calls of branch operations: one contract (`base`), one implementation per protocol."""
