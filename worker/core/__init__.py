"""The pure core: values in, values out. No I/O, no clock, no await (tests/unit/test_purity.py).

`decode` judges one record alone, with the column rules of `rules`. `references` judges it against
the known users and matches. `parking` holds waiting records. `frontier` decides when a reference is
definitely missing, and `addresses` which user may have an address. `task` turns a batch into a
decision; `outbox` turns the decision into messages.
"""
