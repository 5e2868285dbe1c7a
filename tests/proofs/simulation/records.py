"""The records that were sent, told apart also where a topic was created anew.

Offsets begin at 0 again then, so a coordinate may name several records, each of another topic of
that name: another *generation*. What has not been judged by then is lost with its topic, unless it
is parked and the log has a copy of it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from worker.core.topics import Names
from worker.stream import Message

Kind = Literal["row", "deletion", "invalid"]


class Sent(msgspec.Struct):
    """One record, and what upstream knows of it. `code` is the error of its own that it has.

    `mark` stands in its value and in no other's, in whatever form that is published; a deletion
    has none. `source` names it among all records of all generations.
    """

    entity: str
    key: str
    kind: Kind
    value: bytes | None
    users: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()
    address: str | None = None
    code: str = ""
    keyed: bool = True
    anywhere: bool = False
    refused: bool = False
    """Whether the broker never takes its row."""
    mark: bytes = b""
    generation: int = 0
    source: str = ""
    partition: int = 0
    offset: int = 0
    moment: int = 0
    tick: int = 0
    first_read: int | None = None
    """When a worker was given it first."""
    ambiguous: bool = False
    """Whether its outcome may be that of another deletion of the same key, partition and offset."""

    def has_come_out_as(self, key: str, value: bytes | None) -> bool:
        """Whether this may be its row, its rejection or its copy."""
        if value is None or not self.mark:
            return value is None and self.kind == "deletion" and self.key == key
        return self.mark in value


class Outcome(NamedTuple):
    """What was published about a record."""

    topic: str
    partition: int
    offset: int
    tick: int
    moment: int
    codes: tuple[str, ...]
    orphans: tuple[tuple[str, str], ...]
    """Entity and id of the references that were called orphaned."""

    @property
    def kind(self) -> str:
        """accepted (a deletion too) or rejected."""
        return self.topic.split(".")[1]


def named(coordinate: str, generation: int) -> str:
    """A name that is good for the topics of all generations."""
    return f"{coordinate}~{generation}" if generation else coordinate


class Records:
    """All that was sent, in that order, by source."""

    def __init__(self, names: Names) -> None:
        self.sent: dict[str, Sent] = {}
        self.copied: set[str] = set()
        """Of which the log has or had a copy, by source."""
        self._names = names
        self._at: dict[str, list[Sent]] = {}
        """By coordinate, the oldest generation first."""
        self._resets: list[tuple[str, int, int, int]] = []
        self._judged_again: list[tuple[str, int, int, int]] = []
        self._messages: dict[int, tuple[Message, Sent]] = {}
        """By identity: the message keeps it from being given to another one."""

    def note(self, sent: Sent, message: Message) -> None:
        """Something was sent."""
        self.sent[sent.source] = sent
        self._at.setdefault(sent.source.partition("~")[0], []).append(sent)
        self._messages[id(message)] = message, sent

    def note_read(self, messages: Iterable[Message], now: int) -> None:
        """A worker was given these."""
        for message in messages:
            found = self._messages.get(id(message))
            if found is not None and found[1].first_read is None:
                found[1].first_read = now

    def find(
        self, coordinate: str, key: str, value: bytes | None, done: Container[str]
    ) -> Sent | None:
        """The record that is meant, of those that were ever sent to this coordinate.

        Its value tells which. Only deletions of one key can be mixed up: the earliest that is not
        `done` is taken for it then, and nothing more is expected of any of them.
        """
        there = self._at.get(coordinate, ())
        found = [s for s in there if s.has_come_out_as(key, value)]
        if not found:  # a deletion that `is_refused` is rejected; nothing in that tells it
            found = [s for s in there if s.kind == "deletion" and s.key == key]
            found = [sent for sent in found if self.is_refused(sent)]
        if len(found) < 2:
            return found[0] if found else None
        left = [sent for sent in found if sent.source not in done]
        if len(left) > 1:
            for sent in left:
                sent.ambiguous = True
        return left[0] if left else found[-1]

    def reset(self, entity: str, partition: int, offset: int, generation: int) -> None:
        """An operator has the records from there on judged again, also those sent meanwhile."""
        self._resets.append((entity, partition, offset, generation))

    def reset_done(self, entity: str, partition: int, offset: int, since: int) -> None:
        """That has succeeded, begun at that tick: they are judged later than that."""
        self._judged_again.append((entity, partition, offset, since))

    def judged_since(self, sent: Sent) -> int:
        """The latest tick that its last outcome has to be later than."""
        place = sent.entity, sent.partition
        return max(
            (r[3] for r in self._judged_again if r[:2] == place and r[2] <= sent.offset), default=0
        )

    def outcomes_of(self, sent: Sent) -> int:
        """How many a record may have."""
        return 1 + len(self._resets_of(sent))

    def _resets_of(self, sent: Sent) -> list[int]:
        """In which generations of its topic it was among those that were reset."""
        place = sent.entity, sent.partition
        return [r[3] for r in self._resets if r[:2] == place and r[2] <= sent.offset]

    def is_refused(self, sent: Sent) -> bool:
        """Whether the broker never takes its row.

        Or that of a record of the same coordinate in another generation: the engine knows by
        coordinate what was refused (seed 1353).
        """
        return any(other.refused for other in self._at[sent.source.partition("~")[0]])

    def may_be_lost(self, source: str, generations: Mapping[str, int]) -> bool:
        """Whether it is gone with its topic and has no copy; `generations` are those of now.

        A reset strikes out copies of what can still be read (seed 2433).
        """
        sent = self.sent[source]
        now = generations.get(self._names.input(sent.entity), 0)
        has_copy = source in self.copied and sent.generation not in self._resets_of(sent)
        return sent.ambiguous or (sent.generation < now and not has_copy)
