"""Remembers the last checkpoint of every task: the topic that holds them may be lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

_MOST_BYTES: Final = 32 * 2**20
"""Of all checkpoints together. Without the one that does not fit, a task begins again."""
_ANY: Final = -1


class LastCheckpoint(NamedTuple):
    """The last known checkpoint of a task, and its offset in the progress topic."""

    value: bytes
    offset: int
    owner: str = ""
    """The owner of this worker that has written it, and has failed at none since; empty if it may
    be followed by others."""
    is_own: bool = False
    """Whether this worker has written it, and has read no later one."""
    owners: str = ""
    """The identity that the topic of owners had then."""


class LastCheckpoints:
    """The last checkpoint of every task that this worker has written or read.

    Outlives the loops of a worker, so the topic may be lost together with one that makes the
    worker begin anew. What another worker has written last may not have been read. So only a
    checkpoint of the owner before this one (`LastCheckpoint.owner`) is surely the last.
    """

    def __init__(self) -> None:
        self._known: dict[int, LastCheckpoint] = {}
        self._bytes = 0
        self.identity = ""
        """Of the topic, as far as a reader knows it."""

    def of(self, number: int) -> LastCheckpoint | None:
        """The last checkpoint of a task; None if none is known."""
        return self._known.get(number)

    def wrote(self, number: int, offset: int, value: bytes, owner: str, owners: str = "") -> None:
        """Remember a checkpoint that this owner of the task has committed.

        `owners` is the identity of the topic that lists the owner.
        """
        self._set(number, LastCheckpoint(value, offset, owner, is_own=True, owners=owners))

    def may_be_followed(self, number: int) -> None:
        """The last checkpoint of this worker is not surely the last.

        Its next commit has failed, and may be in the log all the same; or others have the task.
        """
        if (known := self._known.get(number)) is not None:
            self._known[number] = known._replace(owner="")

    def read(self, number: int, offset: int, value: bytes) -> None:
        """Remember a checkpoint that was read, unless a later one is known already."""
        known = self._known.get(number)
        if known is None or offset > known.offset:
            if known is not None and known.value == value:
                self._set(number, known._replace(offset=offset))
            else:
                self._set(number, LastCheckpoint(value, offset))

    def take_beyond(self, tasks: int) -> dict[int, bytes]:
        """The last checkpoints that this worker has written for tasks that are no more."""
        gone = [number for number in self._known if number >= tasks]
        taken = {number: self._known.pop(number) for number in gone}
        self._bytes -= sum(len(last.value) for last in taken.values())
        return {number: last.value for number, last in taken.items() if last.is_own}

    def starts(self, identity: str, ends: Mapping[int, int]) -> None:
        """A reader starts at the beginning of the topic; `ends` are those of its partitions."""
        ended = any(known.offset >= ends.get(n, 0) for n, known in self._known.items())
        if identity != self.identity or ended:
            self.went_back()
        self.identity = identity

    def went_back(self) -> None:
        """The topic is another one, or has lost its end: what is read from now on is the last."""
        self._known = {n: known._replace(offset=_ANY) for n, known in self._known.items()}

    def _set(self, number: int, checkpoint: LastCheckpoint) -> None:
        before = self._known.pop(number, None)
        if before is not None:
            self._bytes -= len(before.value)
        if self._bytes + len(checkpoint.value) <= _MOST_BYTES:
            self._known[number] = checkpoint
            self._bytes += len(checkpoint.value)
