"""The records that were sent, told apart also where a topic was created anew.

Offsets begin at 0 again then, so a coordinate may name several records, each of another topic of
that name: another *generation*. What has not been judged by then is lost with its topic, unless it
is parked and the log has a copy of it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Literal

import msgspec

from worker.topics import Names

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
    mark: bytes = b""
    generation: int = 0
    source: str = ""
    partition: int = 0
    offset: int = 0
    moment: int = 0
    tick: int = 0

    def has_come_out_as(self, value: bytes | None) -> bool:
        """Whether this may be its row, its rejection or its copy."""
        if value is None or not self.mark:
            return value is None and self.kind == "deletion"
        return self.mark in value


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

    def note(self, sent: Sent) -> None:
        """Something was sent."""
        self.sent[sent.source] = sent
        self._at.setdefault(sent.source.partition("~")[0], []).append(sent)

    def find(
        self,
        coordinate: str,
        value: bytes | None,
        generations: Mapping[str, int],
        done: Container[str],
    ) -> Sent | None:
        """The record that a task means, of those that were ever sent to this coordinate.

        It knows those of the generation that it reads, and those before that have a copy. Only
        deletions can be mixed up: of one key and partition, so the earlier one is `done` first.
        """
        found = None
        generation = generations.get(coordinate.partition("/")[0], 0)
        for sent in self._at.get(coordinate, ()):
            copied = sent.generation < generation and sent.source in self.copied
            if (copied or sent.generation == generation) and sent.has_come_out_as(value):
                found = sent
                if sent.source not in done:
                    break
        return found

    def may_be_lost(self, source: str, generations: Mapping[str, int]) -> bool:
        """Whether it is gone with its topic and has no copy; `generations` are those of now."""
        sent = self.sent[source]
        now = generations.get(self._names.inputs(sent.entity), 0)
        return sent.generation < now and source not in self.copied
