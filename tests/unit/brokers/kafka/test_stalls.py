"""When a partition of a reader on Kafka counts as giving nothing."""

from __future__ import annotations

from worker.brokers.kafka.stalls import STALL_SECONDS, Stalls
from worker.stream import Partition

HERE, THERE = Partition("t", 0), Partition("t", 1)
LOOKS = int(STALL_SECONDS) + 2


class Looks:
    def __init__(self) -> None:
        self.now = 0.0
        self.stalls = Stalls(lambda: self.now)

    def look(
        self, *marks: tuple[Partition, object], seconds: float = 1.0, answers: bool = True
    ) -> list[Partition]:
        self.now += seconds
        return self.stalls.update(marks, answers=answers)


def test_a_partition_that_gives_nothing_is_told_once_until_it_gives_something() -> None:
    looks = Looks()
    told = [p for n in range(2 * LOOKS) for p in looks.look((HERE, 4), (THERE, n))]
    assert (told, looks.stalls.stalled()) == ([HERE], [HERE])
    assert looks.look((HERE, 5)) == []
    assert looks.stalls.stalled() == []


def test_what_is_at_hand_and_not_handed_out_does_not_stall() -> None:
    looks = Looks()
    assert [p for _ in range(LOOKS) for p in looks.look((HERE, None))] == []


def test_a_broker_that_is_silent_for_all_is_an_outage_and_no_damage() -> None:
    looks = Looks()
    assert [p for _ in range(3 * LOOKS) for p in looks.look((HERE, 4), answers=False)] == []
    assert [p for _ in range(LOOKS) for p in looks.look((HERE, 4))] == [HERE]


def test_who_does_not_read_misses_nothing() -> None:
    looks = Looks()
    assert [p for n in range(5) for p in looks.look((HERE, 4), (THERE, n), seconds=3_600)] == []


def test_a_partition_that_is_not_read_any_more_is_forgotten() -> None:
    looks = Looks()
    for n in range(LOOKS):
        looks.look((HERE, 4), (THERE, n))
    assert looks.stalls.stalled() == [HERE]
    looks.stalls.retain([THERE])
    assert looks.stalls.stalled() == []
