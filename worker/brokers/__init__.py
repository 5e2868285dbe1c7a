"""Brokers: one contract (`contract.py`), fulfilled by `embedded.py` and `kafka.py`."""
