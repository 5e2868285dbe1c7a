"""The demo's data: a made-up programme, and everything that can be wrong with a record.

`programme` writes records that are accepted, `faults` spoils some of them. Both take and return
values only: no I/O, no clock, the same seed gives the same bytes.
"""
