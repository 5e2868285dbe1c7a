"""The pure core: values in, values out. No I/O, no clock, no await (tests/unit/test_purity.py).

`decode` judges one record by itself (`rules`: field by field), `references` against what is
known; `parking` keeps what waits; `frontier` says when a reference is definitely missing,
`addresses` who may have an address; `task` turns a batch into a decision and `outbox` words it.
"""
