"""Servers and other processes that tests, demo and load test start on this machine, and that end with them."""
