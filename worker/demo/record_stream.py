"""The demo's stream of records: the programme, shuffled, with faulty records mixed in."""

import heapq
import zlib
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from itertools import cycle
from math import ceil
from random import Random
from typing import Final

import msgspec

from worker.demo import faults
from worker.demo.programme import PER_USER, cohorts
from worker.demo.record import ENTITIES, Record

WINDOW: Final = 1_000
"""A record moves by fewer places than this."""
DUPLICATE_GAP: Final = 10_000
"""The number of records between an address and a second claim to it."""


def stream(records: int, seed: int, now: datetime, bad_share: float = 0.03) -> Iterator[Record]:
    """Yield at least `records` records: a shuffled programme, with `bad_share` of them spoiled.

    All kinds of faults take turns. A referenced record may come up to `WINDOW` records late, so a
    slow sender needs a grace long enough for that many. A second claim to an address comes
    `DUPLICATE_GAP` records after the first, or at the end. Memory does not grow with `records`.
    Raises ValueError if `bad_share` is out of range, or if `now` has no time zone.
    """
    if not 0 <= bad_share < 1:
        raise ValueError("bad_share must be at least 0 and less than 1")
    users = max(2, ceil(records * (1 - bad_share) / (1 + sum(PER_USER.values()))) + 1)
    spoiler = _Spoiler(Random(f"faults {seed}"), now, bad_share)
    yield from _shuffled(spoiler.mix(cohorts(users, seed, now)), Random(f"order {seed}"))
    yield from spoiler.claims(0)


class _Spoiler:
    """Adds faulty records to cohorts, so that they make up `share` of the output."""

    def __init__(self, rng: Random, now: datetime, share: float) -> None:
        self._rng = rng
        self._now = now
        self._for_each = share / (1 - share)
        self._kinds = cycle(faults.KINDS)
        self._due = 0.0
        self._position = 0
        # Addresses that can be claimed again, oldest first, and the number of claims that are due.
        self._holders: deque[tuple[int, bytes]] = deque(maxlen=4_000)
        self._claims = 0

    def mix(self, cohorts: Iterator[list[Record]]) -> Iterator[Record]:
        for cohort in cohorts:
            self._due += len(cohort) * self._for_each
            spoiled = self._spoil(cohort, int(self._due))
            self._due -= int(self._due)
            spoiled += self.claims(DUPLICATE_GAP + WINDOW)
            mixed = cohort + spoiled
            self._position += len(mixed)
            self._holders += [
                (self._position, r.value) for r in cohort if r.entity == "users" and r.value
            ]
            yield from mixed

    def claims(self, gap: int) -> list[Record]:
        """Make the due claims to addresses that were first used at least `gap` records ago."""
        made: list[Record] = []
        while self._claims and self._holders and self._position - self._holders[0][0] >= gap:
            made.append(self._make("duplicate_email", "users", self._holders.popleft()[1]))
            self._claims -= 1
        return made

    def _spoil(self, cohort: list[Record], count: int) -> list[Record]:
        by_entity: dict[str, list[bytes]] = {entity: [] for entity in ENTITIES}
        for record in cohort:
            if record.value is not None:
                by_entity[record.entity].append(record.value)
        made: list[Record] = []
        for _ in range(count):
            kind = next(self._kinds)
            if kind == "duplicate_email":
                self._claims += 1
                continue
            entity = self._rng.choice(faults.entities_of(kind))
            made.append(self._make(kind, entity, self._rng.choice(by_entity[entity])))
        return made

    def _make(self, kind: str, entity: str, good: bytes) -> Record:
        row = msgspec.json.decode(good, type=dict[str, object])
        return faults.make(kind, self._rng, entity, row, self._now)


def _shuffled(records: Iterator[Record], rng: Random) -> Iterator[Record]:
    """Move each record back by less than `WINDOW` places; records of one key move equally far."""
    waiting: list[tuple[float, int, Record]] = []
    for position, record in enumerate(records):
        if record.key is None:
            shift = rng.random()
        else:
            shift = zlib.crc32(f"{record.entity} {record.key}".encode()) / 2**32
        while waiting and waiting[0][0] <= position:
            yield heapq.heappop(waiting)[2]
        heapq.heappush(waiting, (position + shift * WINDOW, position, record))
    while waiting:
        yield heapq.heappop(waiting)[2]
