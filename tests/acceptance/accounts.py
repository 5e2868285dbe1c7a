"""Accounts of what became of records, read from the broker as anybody outside can."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from schemas import ENTITIES
from tests.acceptance.kit import DEADLINE, Buddy
from worker.brokers.contract import Broker
from worker.cli.connect_broker import connect
from worker.cli.settings import Settings
from worker.core.topics import Names
from worker.stream import Message, Partition

Verdict = tuple[str, tuple[str, ...]]
"""Entity and the distinct codes in order of the alphabet: what is asked about each record."""


@asynccontextmanager
async def broker_of(buddy: Buddy) -> AsyncIterator[Broker]:
    """The broker, opened in this process."""
    broker = connect(Settings(broker=buddy.broker), {})
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def everything(broker: Broker, topics: Iterable[str]) -> dict[str, list[Message]]:
    """Every message of these topics."""
    names = list(topics)
    found: dict[str, list[Message]] = {name: [] for name in names}
    there = await broker.topics(names)
    spans = await broker.spans(
        Partition(t.name, number) for t in there.values() for number in range(t.partitions)
    )
    reader = broker.reader()
    reader.assign({p: span.start for p, span in spans.items()})
    try:
        async with asyncio.timeout(DEADLINE):
            while any(reader.position(p) < span.end for p, span in spans.items()):
                for message in await reader.read(5_000, 0.5):
                    found[message.topic].append(message)
    finally:
        await reader.close()
    return found


class Outcomes:
    """Counts outcomes as they come, so that a test can act in the middle of the work."""

    def __init__(self, broker: Broker, names: Names) -> None:
        self.count = 0
        self._broker = broker
        self._names = names
        self._reader = broker.reader()

    async def open(self) -> None:
        """Count from the start."""
        topics = await self._broker.topics(_outcome_topics(self._names))
        places = [Partition(t.name, n) for t in topics.values() for n in range(t.partitions)]
        self._reader.assign({p: s.start for p, s in (await self._broker.spans(places)).items()})

    async def reach(self, count: int) -> None:
        """Until so many outcomes are there."""
        async with asyncio.timeout(2 * DEADLINE):
            while self.count < count:
                self.count += len(await self._reader.read(5_000, 0.5))

    async def close(self) -> None:
        """Stop counting."""
        await self._reader.close()


class Books:
    """What stands on the broker once everything has stopped: each input with its outcomes."""

    def __init__(self, names: Names, messages: Mapping[str, list[Message]]) -> None:
        self.outcomes: Counter[str] = Counter()
        self.verdicts: Counter[Verdict] = Counter()
        inputs = [m for e in ENTITIES for m in messages[names.input(e)]]
        self.inputs = {_place(m) for m in inputs}
        for entity in ENTITIES:
            for message in messages[names.accepted(entity)]:
                codes = dict(message.headers).get("buddy-warnings", b"").decode()
                self._note(message, entity, codes.split(",") if codes else [])
            for message in messages[names.rejected(entity)]:
                found = json.loads(message.value or b"")["violations"]
                self._note(message, entity, [v["code"] for v in found])
        parked: dict[bytes | None, bytes | None] = {}
        for message in messages[names.parked]:
            parked[message.key] = message.value
        self.parked = [key for key, value in parked.items() if value is not None]
        ever = {(key or b"").decode() for key in parked}
        for message in messages[names.progress]:
            for entity, moments in json.loads(message.value or b"{}").get("held", {}).items():
                for offset in (at for offsets in moments.values() for at in offsets):
                    ever.add(f"{entity}/{message.partition}/{offset}")
        self.ever_parked = len(ever)

    def _note(self, outcome: Message, entity: str, codes: Iterable[str]) -> None:
        self.outcomes[dict(outcome.headers)["buddy-source"].decode()] += 1
        self.verdicts[entity, tuple(sorted(set(codes)))] += 1

    def balance(self) -> None:
        """Every record has exactly one outcome, and nothing waits."""
        lost = self.inputs - self.outcomes.keys()
        doubled = {place: n for place, n in self.outcomes.items() if n > 1}
        assert not lost, f"{len(lost)} records lost: {sorted(lost)[:5]}"
        assert not doubled, f"{len(doubled)} records doubled: {sorted(doubled)[:5]}"
        assert self.outcomes.keys() == self.inputs
        assert not self.parked, f"{len(self.parked)} still parked: {self.parked[:5]}"


async def books_of(buddy: Buddy) -> Books:
    """The books, closed: call it when nothing runs any more."""
    names = buddy.names
    topics = [names.input(e) for e in ENTITIES] + _outcome_topics(names)
    topics += [names.parked, names.progress]
    async with broker_of(buddy) as broker:
        return Books(names, await everything(broker, topics))


def rows_of(document: Path) -> dict[str, list[Any]]:
    """The rows of an exported JSON document, by entity."""
    content = json.loads(document.read_bytes())
    return {entity: content[entity] for entity in ENTITIES if entity in content}


def json_rows(export: Path) -> dict[str, list[Any]]:
    """The rows of an export that has its JSON document."""
    (document,) = export.glob("buddy_export_*.json")
    return rows_of(document)


def latest_rows(directory: Path) -> dict[str, dict[tuple[Any, ...], Any]]:
    """The rows that `buddy check --accepted` wrote: the last one of each key."""
    return {
        name: by_key(name, _lines(directory / f"{name}.ndjson")) for name in ENTITIES
    }  # fmt: skip


def by_key(entity: str, rows: Iterable[Any]) -> dict[tuple[Any, ...], Any]:
    """Rows by their keys; of several with one key the last."""
    return {tuple(row[field] for field in ENTITIES[entity].key): row for row in rows}


def _lines(path: Path) -> Iterator[Any]:
    if path.exists():
        yield from (json.loads(line) for line in path.read_bytes().splitlines())


def _outcome_topics(names: Names) -> list[str]:
    return [names.accepted(e) for e in ENTITIES] + [names.rejected(e) for e in ENTITIES]


def _place(message: Message) -> str:
    return f"{message.topic}/{message.partition}/{message.offset}"
