"""A distributed transaction coordinator.

Its pure core (`model`, `decision`, `record`, `retry`, the patterns, the barrier's rule) does no I/O and needs only
msgspec; the SDK is built on it as well. All else is the coordinator, and needs the extra `server`. Which is which,
and where to begin, says docs/architecture.md; tests/unit/test_import_directions.py holds it.
"""

__version__ = "0.1.0"
