"""The client SDK of txcoord: open global transactions, protect participants."""

__version__ = "0.1.0"
