"""The demo: real processes, real orders, and what may go wrong on the way.

./scripts/demo        or, in an environment with everything installed: python -m examples.demo
"""
