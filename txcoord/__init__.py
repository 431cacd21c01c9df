"""A distributed transaction coordinator; this package's top holds its pure core."""

__version__ = "0.1.0"
