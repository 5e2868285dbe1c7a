"""What the number of ids in the index costs: CPU a look-up, and CPU a record.

The records refer to users anywhere in it, all known, so that no look-up finds its page in the
processor's caches for another reason than the index being small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from uuid import UUID

import msgspec

from tests.bench import mix
from tests.bench.figures import Figure, alternate
from tests.bench.index import fill, made_id, messages
from tests.bench.judging import batches_of, judge_all
from tests.bench.setting import Bench
from worker.core.round import TaskBatch
from worker.demo.record import USER_REFERENCES, Record, Row, encode, key_of, uuid4
from worker.index.store import IndexStore

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
PER_RECORD = 50
"""The largest index measured holds so many ids for each record of the bench: ten million."""
_LOOKUPS = 200_000
_ENTITIES = ("matches", "event_attendance", "skill_sessions", "milestones")
_OWN_IDS = ("match_id", "event_id", "session_id")
_AIM = 1.3


def run(bench: Bench) -> Iterator[Figure]:
    """One index that grows; each size compared with the first."""
    first: tuple[float, float] | None = None
    with bench.folder() as folder:
        store = IndexStore(folder / "index")
        store.open()
        try:
            there = 0
            for size in SIZES:
                if size > SIZES[0] and size > PER_RECORD * bench.records:
                    break
                bench.say(f"index of {size:,} ids")
                fill(store, messages("users", size, there))
                there = size
                found = _measure(store, size, min(50_000, bench.records))
                first = first or found
                yield from _figures(size, found, first)
        finally:
            store.close()


def _figures(size: int, found: tuple[float, float], first: tuple[float, float]) -> list[Figure]:
    figures = []
    for what, value, base in zip(("look-up", "record"), found, first, strict=True):
        compared = found is not first and what == "record"
        figures.append(
            Figure(
                section="index",
                name=f"{size:,} users: CPU a {what}",
                value=value,
                unit="µs",
                aim=_AIM * base if compared else None,
                at_most=True,
                beside={f"{SIZES[0]:,}": base} if found is not first else {},
            )
        )
    return figures


def _measure(store: IndexStore, size: int, records: int) -> tuple[float, float]:
    """CPU microseconds of a look-up in random order, and of `Task.judge` a record."""
    rng = Random(mix.SEED)
    ids = [made_id("users", rng.randrange(size)) for _ in range(_LOOKUPS)]
    _look(store.user, ids)  # brings the pages into memory
    before = time.process_time()
    _look(store.user, ids)
    look = (time.process_time() - before) / len(ids)
    batches: list[TaskBatch] = batches_of(referring(records, size, rng))
    (judged,) = alternate([partial(judge_all, batches, store)])
    return look * 1e6, judged.cpu / records * 1e6


def _look(user: Callable[[bytes], bool], ids: list[bytes]) -> None:
    for each in ids:
        user(each)


def referring(count: int, size: int, rng: Random) -> Iterator[Record]:
    """Good records, each with a key of its own, that refer to any of `size` users and nothing else.

    Of four entities in turn: one or two references each.
    """
    templates: list[tuple[str, Row]] = []
    for entity in _ENTITIES:
        _, good = mix.good_records(40)[entity][0]
        row: Row = msgspec.json.decode(good)
        if entity != "matches":
            row.pop("match_id", None)
        templates.append((entity, row))
    for number in range(count):
        entity, row = templates[number % len(templates)]
        for user in [name for name in USER_REFERENCES if name in row]:
            row[user] = str(UUID(bytes=made_id("users", rng.randrange(size))))
        for own in [name for name in _OWN_IDS if name in row]:
            row[own] = uuid4(rng)
        if "milestone_id" in row:
            row["milestone_id"] = number + 1
        yield Record(entity, key_of(entity, row), encode(row))
