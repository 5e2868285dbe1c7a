"""A task's checkpoint: each commit saves it, and a take-over restores it."""

from __future__ import annotations

import msgspec

_json = msgspec.json.Encoder().encode


class Reached(msgspec.Struct, frozen=True, omit_defaults=True):
    """The position of a task: the next offset of each input, and the judged offset by entity.

    A parked record is read but not judged: `judged` is at most its offset, or -1 if it belongs to
    an earlier topic. `topics` has the identity of each input's topic: in another topic of the same
    name these offsets mean nothing. `watermarks` has an append time for users and for matches.
    Records up to that time are judged, or parked for longer than other records wait for them.
    Workers use them to read a backlog side by side.
    """

    next: dict[str, int]
    judged: dict[str, int]
    topics: dict[str, str] = {}
    watermarks: dict[str, int] = msgspec.field(default_factory=dict, name="until")
    earlier: dict[str, int] = {}
    """How often the topic of each input was recreated or truncated: earlier offsets are void."""


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The outcomes of one entity's records in one task; `parked` counts those that wait now."""

    read: int = 0
    accepted: int = 0
    deleted: int = 0
    rejected: int = 0
    parked: int = 0


class Checkpoint(Reached, frozen=True, omit_defaults=True):
    """The complete checkpoint of a task: its position, its records in memory and its books.

    `in_memory` lists the records before `next` that have no persisted copy: the next owner reads
    exactly these again. It has, by entity, the time of first reading in milliseconds and the
    offsets.

    `reserved` shows whether the log has lost reservations. The other fields are reported to people.
    `worker` has owned the task since `since`. `counts` has the outcomes; `incidents` counts what
    went wrong. `seen` has, for lasting faults in a topic, the number already counted. `oldest` is
    when the oldest parked record was first read.
    """

    in_memory: dict[str, dict[int, list[int]]] = msgspec.field(default_factory=dict, name="held")
    arrived: dict[str, int] = {}
    """By input, the latest append time of the records read: what follows a truncation is later."""
    counts: dict[str, Counts] = {}
    incidents: dict[str, int] = {}
    worker: str = ""
    since: int = 0
    oldest: int = 0
    reserved: int | None = None
    """How many reservations the log has; None in checkpoints of earlier releases."""
    seen: dict[str, int] = {}
    unneeded: int = 0
    """How many copies of parked records the log may have beyond `next`: these will be read."""

    @property
    def has_books(self) -> bool:
        """Whether the checkpoint includes the books; earlier releases wrote none."""
        return bool(self.topics)


def write_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as `internal.progress` holds it."""
    return _json(checkpoint)
