"""The index: which users and matches are known, and who holds which address.

`contract.py` says what it answers, `memory.py` and `store.py` fulfil it, `rows.py` reads what it
is made of. `freshness.py` and `tails.py` decide when what is on disk can no longer be trusted, the
sink's store included; `resuming.py` reads what they compare.
"""
