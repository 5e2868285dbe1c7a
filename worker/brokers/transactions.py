"""Detects open transactions of other writers, which hide all later records. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from worker.stream import Partition

_OPEN_MS: Final = 15_000
"""A transaction is reported once it has blocked a partition for this long."""


class Blocked(NamedTuple):
    """A transaction open at `offset` for `seconds`, and the records that it hides."""

    partition: Partition
    offset: int
    records: int
    seconds: int
    others: int = 0
    """How many more partitions have been blocked for long enough to be reported."""

    def log_fields(self) -> dict[str, object]:
        """The fields of a log line."""
        return {
            "topic": self.partition.topic,
            "partition": self.partition.number,
            "offset": self.offset,
            "count": self.records,
            "seconds": self.seconds,
            "others": self.others,
        }

    def __str__(self) -> str:
        more = f" (partitions blocked besides: {self.others})" if self.others else ""
        return (
            f"{self.records} records of {self.partition.topic}/{self.partition.number} are behind a"
            f" transaction that has been open at offset {self.offset} for {self.seconds} s{more}:"
            " end it where it was begun, or abort it with kafka-transactions.sh"
        )


class OpenTransactions:
    """Tracks how far partitions are readable. `clock` is steady, in milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._open: dict[Partition, tuple[int, int]] = {}
        """Partitions with uncommitted records: the last stable offset, unchanged since when."""

    def update(self, ends: Mapping[Partition, tuple[int, int]]) -> Blocked | None:
        """The transaction that has been open longest, once it has been open for 15 s.

        `ends` has the last stable offset and the end offset of each partition.
        """
        now = self._clock()
        before = self._open
        self._open = {
            p: before[p] if before.get(p, (-1, 0))[0] == stable else (stable, now)
            for p, (stable, end) in ends.items()
            if end > stable
        }
        blocked = {partition: now - since for partition, (_, since) in self._open.items()}
        if max(blocked.values(), default=0) < _OPEN_MS:
            return None
        partition = max(blocked, key=lambda partition: blocked[partition])
        stable, end = ends[partition]
        others = sum(lasts >= _OPEN_MS for lasts in blocked.values()) - 1
        return Blocked(partition, stable, end - stable, blocked[partition] // 1000, others)
