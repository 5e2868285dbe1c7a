"""The settings that all tasks share."""

from __future__ import annotations

import msgspec

from worker.core.topics import Names


class TaskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of every task. Times are in milliseconds, sizes in bytes.

    `tasks` is the number of input partitions. A decision that holds `decision_bytes` settles no
    more parked records. A parked record is persisted after `persist_after`, or earlier if its
    entity has more than an equal share of `most_in_memory`: docs/exactly-once.md, "Parked records".
    """

    names: Names
    tasks: int = 1
    decision_bytes: int = 16 * 1024 * 1024
    grace: int = 30_000
    persist_after: int = 10_000
    most_in_memory: int = 5_000
    skew: int = 60_000
    record_limit: int = 1024 * 1024
    rejection_limit: int = 1024 * 1024 * 4 // 3 + 60 * 1024
