"""Saga: actions forward, compensations backward."""
