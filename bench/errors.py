"""What can keep a measurement from being made."""


class BenchError(Exception):
    """The measurement cannot be made; the sentence says why and what to do."""
