"""Drives owned transactions: decide, act, record."""
