"""The demo's data: a made-up programme, and every kind of faulty record.

`programme` makes records that are accepted; `faults` spoils some of them. Both take and return
values only: no I/O, no clock. The same seed gives the same bytes.
"""
