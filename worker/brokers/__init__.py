"""Brokers: one contract (`contract.py`) and its implementations, `embedded/` and `kafka/`."""
