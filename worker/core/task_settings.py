"""What every task of a worker is told."""

from __future__ import annotations

import msgspec

from worker.core.topics import Names


class TaskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every task is told. Times in milliseconds, sizes in bytes.

    `tasks` is the number of partitions of the inputs. No more parked records are settled in a
    decision once it holds `decision_bytes`. A parked record gets a copy in the log after
    `hold`, or once `most_held` are without one: docs/exactly-once.md, "Parked records".
    """

    names: Names
    tasks: int = 1
    decision_bytes: int = 16 * 1024 * 1024
    grace: int = 30_000
    hold: int = 10_000
    most_held: int = 5_000
    skew: int = 60_000
    record_limit: int = 1024 * 1024
    rejection_limit: int = 1024 * 1024 * 4 // 3 + 60 * 1024
