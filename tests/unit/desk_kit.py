"""Rejections as the desk reads them, and rows that settle them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from worker.core.rejection import Source
from worker.core.topics import Names
from worker.core.violations import Code, Violation
from worker.desk import queries
from worker.desk.queries import Filter
from worker.desk.seen import RejectionSeen, Settling, key_digest
from worker.desk.store import Numbered, RejectionStore
from worker.stream import Partition

NAMES = Names("t")
START = 1_764_547_200_000
"""A midnight, in milliseconds."""


def rejection(
    offset: int,
    *,
    entity: str = "users",
    key: str | None = "1",
    at: int = 0,
    kinds: Sequence[tuple[Code, str]] = ((Code.INVALID_ENUM, "role"),),
    partition: int = 0,
    source: tuple[int, int] | None = None,
    judged: int | None = None,
    producer: str = "",
    wanted: tuple[int, ...] = (),
) -> Numbered:
    """The rejection at that offset of a partition, `at` milliseconds after `START`.

    `source` is the partition and offset of its record: those of the rejection if not given.
    `judged` is when its round was, `at` if not given.
    """
    number, position = source or (partition, offset)
    seen = RejectionSeen(
        entity,
        key,
        datetime.fromtimestamp((START + (at if judged is None else judged)) / 1000, UTC),
        Source(NAMES.input(entity), number, position, ""),
        [Violation(code, field, "", "error") for code, field in kinds],
        producer=producer,
        at=START + at,
        wanted=wanted,
    )
    return Numbered(Partition(NAMES.rejected(entity), partition), offset, seen)


def settling(
    key: str = "1",
    *,
    entity: str = "users",
    at: int = 0,
    partition: int = 0,
    offset: int = 0,
    deleted: bool = False,
    judged: int | None = None,
    unknown: tuple[str, ...] = (),
) -> Settling:
    """The row or deletion of that key, accepted `at` milliseconds after `START`.

    `judged` is when its round was, `at` if not given.
    """
    digest = key_digest(entity, key)
    round_ = START + (at if judged is None else judged)
    return Settling(entity, digest, START + at, partition, offset, deleted, round_, unknown)


def apply(desk: RejectionStore, *found: Numbered, settled: tuple[Settling, ...] = ()) -> None:
    positions = {each.partition: each.offset + 1 for each in found}
    desk.apply(found, settled, positions, {}, {})


def counts(desk: RejectionStore, **chosen: Any) -> tuple[int, int]:
    found = queries.summary(desk, Filter(**chosen))
    return found.records, found.open
