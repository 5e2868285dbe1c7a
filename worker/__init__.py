"""Buddy Stream: a streaming validation worker for the data of a buddy programme."""

__version__ = "0.1.0"
