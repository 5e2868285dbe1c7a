"""Which inputs an export waits for until they are judged. Pure.

An offset counts as judged when no record before it is without its verdict. A task says so in its
progress, which it saves with its work. What it has not saved anything of begins where its input
does: so an empty partition, or one whose messages have all expired, is not waited for. Offsets in
an input that has been created anew since say nothing of the input of now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas import ENTITIES
from worker.core.topics import Names
from worker.index.freshness import is_another
from worker.stream import Message, OffsetRange, Partition

_LARGEST: Final = 2**63 - 1  # of any offset


class Saved(msgspec.Struct, frozen=True):
    """What an export needs of a task's progress; other fields are passed over.

    `judged` is -1 where not even an empty input is judged: of the one before it records are parked.
    """

    next: dict[str, Annotated[int, Meta(ge=0, le=_LARGEST)]]
    judged: dict[str, Annotated[int, Meta(ge=-1, le=_LARGEST)]]
    topics: dict[str, str] = {}
    """The identities of the inputs; earlier versions of the program do not say them."""


_decode: Final = msgspec.json.Decoder(Saved).decode


def read_saved(message: Message) -> Saved | None:
    """What a message of `internal.progress` says of its partition's task; None if it is garbage."""
    if message.key != b"%d" % message.partition or message.value is None:
        return None
    try:
        return _decode(message.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Awaited:
    """The ends that are waited for, and how far the inputs have come."""

    def __init__(
        self, spans: Mapping[Partition, OffsetRange], names: Names, identities: Mapping[str, str]
    ) -> None:
        """`spans` and `identities` are those of all inputs, at the moment of the request."""
        self._identities = identities
        self._ends = {place: span.end for place, span in spans.items()}
        self._starts = {place: span.start for place, span in spans.items()}
        self._names = names
        self._judged = dict(self._starts)
        self._read = dict(self._starts)

    def note(self, task: int, progress: Saved) -> None:
        """What a task has saved, later than anything that was noted of it before."""
        for entity in ENTITIES:
            place = Partition(self._names.inputs(entity), task)
            if place not in self._ends:
                continue
            if self._is_of_another(place.topic, entity, progress):
                continue
            start = self._starts[place]
            read = progress.next.get(entity, 0)
            judged = progress.judged.get(entity, 0)
            # What is parked is not gone with its input: the log keeps a copy, or else the next
            # worker finds out. What has not been read is.
            self._judged[place] = judged if judged < read else max(judged, start)
            self._read[place] = max(read, start)

    def is_beyond(self, task: int, progress: Saved, ends: Mapping[Partition, int]) -> bool:
        """Whether a task claims to have read what is not there: then it is none of ours."""
        places = {e: Partition(self._names.inputs(e), task) for e in progress.next}
        return any(
            progress.next[entity] > ends.get(place, _LARGEST)
            and not self._is_of_another(place.topic, entity, progress)
            for entity, place in places.items()
        )

    def _is_of_another(self, topic: str, entity: str, progress: Saved) -> bool:
        return is_another(progress.topics.get(entity), self._identities.get(topic))

    def judged(self) -> dict[Partition, int]:
        """Of every input the offset up to which all is judged."""
        return {place: max(0, judged) for place, judged in self._judged.items()}

    def pending(self) -> dict[Partition, int]:
        """How many offsets before the end are not judged, of those inputs where there are any."""
        return {
            place: end - self._judged[place]
            for place, end in self._ends.items()
            if self._judged[place] < end
        }

    def steps(self) -> tuple[int, int]:
        """What has been done, and is to be done in all: reading counts as a step, too.

        As long as the first grows somebody makes progress on what is waited for.
        """
        done = sum(
            min(self._judged[place], end) + min(self._read[place], end)
            for place, end in self._ends.items()
        )
        first = 2 * sum(min(self._starts[p], end) for p, end in self._ends.items())
        return max(0, done - first), 2 * sum(self._ends.values()) - first
