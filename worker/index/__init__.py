"""The index: which users and matches are known, and which user holds which address.

`worker.core.known` is the contract; `memory.py` and `store.py` implement it. `rows.py` decodes
the accepted topics. `freshness.py` and `tails.py` decide when state on disk must be rebuilt,
including the sink's store; `resuming.py` reads the messages that they compare.
"""
