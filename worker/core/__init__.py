"""The pure core: values in, values out. No I/O, no clock, no await (tests/unit/test_purity.py).

`decode` judges one record alone, with the column rules of `rules`. `references` judges it against
the known users and matches. `parking` holds waiting records. `frontier` decides when a reference is
definitely missing, and `addresses` which user may have an address. `judge` gives the verdict on one
record, `task_round` on the batch of a task, and `round` decides for all tasks of a worker. `task`
is the state between rounds; `outbox` turns the decision into messages.
"""
