"""Open transactions: the one that has been open longest is told, and how many more there are."""

from __future__ import annotations

from worker.brokers.transactions import OpenTransactions
from worker.stream import Partition

FIRST, SECOND, THIRD = (Partition("p.in.users", number) for number in range(3))


def test_one_is_named_and_the_others_are_counted() -> None:
    now = 0
    watch = OpenTransactions(lambda: now)
    assert watch.update({FIRST: (5, 9), SECOND: (9, 9)}) is None
    now = 5_000
    assert watch.update({FIRST: (5, 9), SECOND: (7, 9)}) is None
    now = 15_000
    only = watch.update({FIRST: (5, 9), SECOND: (7, 9)})
    assert only is not None
    assert (only.partition, only.seconds, only.others) == (FIRST, 15, 0)
    assert "besides" not in str(only)
    now = 20_000
    both = watch.update({FIRST: (5, 9), SECOND: (7, 9), THIRD: (1, 2)})
    assert both is not None
    assert (both.partition, both.records, both.others) == (FIRST, 4, 1)
    assert "for 20 s (partitions blocked besides: 1): end it" in str(both)
    assert both.log_fields()["others"] == 1
