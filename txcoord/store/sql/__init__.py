"""Stores on SQL databases: what they share, and what is different on each."""
