"""Each input with its outcome: exactly one, and none without an input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tests.proofs.chaos.recording import Entry
from tests.proofs.chaos.report import Report

Place = tuple[int, int]
"""Partition and offset."""


class Input(NamedTuple):
    """What is kept of an input: its append time, its content, the code it must be rejected by.

    Of a user also the address, where it can be read.
    """

    arrived: int
    content: bytes | None
    expected: str | None
    key: bytes | None
    address: str | None = None


class Books:
    """The books of one entity, whose inputs stand in `topic`."""

    def __init__(self, topic: str, inputs: Mapping[Place, Input], report: Report) -> None:
        self._topic = topic
        self._inputs = inputs
        self._outcomes: dict[Place, str] = {}
        self._report = report

    def settle(self, entry: Entry, topic: str) -> Place | None:
        """The input that this is the outcome of, None if there is none."""
        where = f"{topic}/{text_of((entry.partition, entry.offset))}"
        source = place_of(entry.header("buddy-source"), self._topic)
        if source is None or source not in self._inputs:
            self._report.violation("no_input", f"{where}: source {entry.header('buddy-source')!r}")
            return None
        before = self._outcomes.get(source)
        if before is not None:
            self._report.violation(
                "two_outcomes", f"{self._topic}/{text_of(source)}: {before} and {where}"
            )
        self._outcomes[source] = where
        return source

    def open(self) -> Iterable[Place]:
        """The inputs without an outcome."""
        return self._inputs.keys() - self._outcomes.keys()


def digest(content: Any) -> bytes:
    """Equal for equal JSON, whatever the order of its fields."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def place_of(source: str, topic: str) -> Place | None:
    """Partition and offset of a coordinate of that topic."""
    name, _, rest = source.partition("/")
    partition, _, offset = rest.partition("/")
    if name != topic or not partition.isdigit() or not offset.isdigit():
        return None
    return int(partition), int(offset)


def text_of(place: Place) -> str:
    """A place as it is written in coordinates."""
    return f"{place[0]}/{place[1]}"
