"""The line about an export whose topics cannot be read to their ends."""

from __future__ import annotations

from worker.sink.store.standstill import standstill
from worker.stream import Partition

A, B = Partition("t.accepted.users", 0), Partition("t.accepted.matches", 1)


def test_missing_partitions_are_named_with_the_usual_reason() -> None:
    line = standstill({A: 19, B: 1}, {})
    assert line.startswith("20 messages of t.accepted.matches/1, t.accepted.users/0 are missing: a")


def test_damage_is_the_reason_where_it_is_known() -> None:
    damaged = {A: "users/0 is damaged", Partition("t.accepted.events", 0): "not asked for"}
    line = standstill({A: 19, B: 1}, damaged)
    assert line.endswith("are missing: users/0 is damaged")


def test_of_many_partitions_the_first_are_named() -> None:
    line = standstill({Partition("t", number): 1 for number in range(9)}, {})
    assert line.startswith("9 messages of t/0, t/1, t/2 and 6 more are missing")
