"""Validation alone, on one core: the decoder, and the decoder with the index on disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from schemas import ENTITIES
from tests.bench import mix
from tests.bench.figures import Figure, Timing, alternate
from tests.bench.setting import Bench
from worker.core.decode import Decoded, DecodeResult, decoders
from worker.core.references import Lookup, missing
from worker.index.store import IndexStore
from worker.stream import Message, Partition

AIM = 250_000
UNKNOWN_SHARE = 0.01
"""Of users and of matches: 99 % of the look-ups hit."""

_Decode = Callable[[bytes | None, bytes | None, datetime], DecodeResult]
Items = list[tuple[_Decode, bytes | None, bytes | None]]
Bare = list[tuple[Callable[[Any], object], bytes | None]]


def run(bench: Bench) -> list[Figure]:
    """Records a second: by entity, for the demo's mix, and with the index."""
    figures = []
    each = max(500, bench.records // 10)
    for entity, records in mix.good_records(each).items():
        decode = decoders()[entity].decode
        items: Items = [(decode, value, key) for key, value in records]
        struct = msgspec.json.Decoder(ENTITIES[entity].struct).decode
        name = f"decoder: {entity}, good records"
        figures.append(_beside_bare(name, items, [(struct, value) for _, value in records]))
    for bad_share, title in ((0.0, "good records"), (0.01, "1 % bad")):
        items = mixed_items(bench.records, bad_share)
        figures.append(_beside_bare(f"decoder: demo mix, {title}", items, bare(items)))
        figures.append(_with_index(bench, f"decoder and index: demo mix, {title}", items))
    return figures


def mixed_items(count: int, bad_share: float) -> Items:
    """The demo's mix without deletions, which a decoder has nothing to do with."""
    by_entity = {name: decoder.decode for name, decoder in decoders().items()}
    return [
        (by_entity[r.entity], r.value, None if r.key is None else r.key.encode())
        for r in mix.mixed(count, bad_share)
        if r.value is not None
    ]


def decode_all(items: Items) -> None:
    """Judge each record by itself."""
    latest = mix.latest()
    for decode, value, key in items:
        decode(value, key, latest)


def decode_and_look(items: Items, known: Lookup) -> None:
    """Judge each record by itself, and look up what it refers to."""
    latest = mix.latest()
    for decode, value, key in items:
        outcome = decode(value, key, latest)
        if type(outcome) is Decoded:
            missing(outcome, known)


def filled_index(directory: Path, items: Items) -> IndexStore:
    """An index that knows all users and matches of these records but 1 %."""
    rng = random.Random(mix.SEED)
    latest = mix.latest()
    store = IndexStore(directory)
    store.open()
    for entity in ("users", "matches"):
        rows = {}
        for decode, value, key in items:
            if decode.__self__.entity.name == entity:  # type: ignore[attr-defined]
                outcome = decode(value, key, latest)
                if isinstance(outcome, Decoded):
                    rows[outcome.key] = outcome.row
        topic = f"buddy.accepted.{entity}"
        messages = [
            Message(topic, 0, offset, 0, key, row)
            for offset, (key, row) in enumerate(rows.items())
            if rng.random() >= UNKNOWN_SHARE
        ]
        store.apply(messages, {Partition(topic, 0): len(rows)})
    return store


class _Counting:
    """Counts what is asked, and how much of it is known."""

    def __init__(self, known: Lookup) -> None:
        self._known = known
        self.asked = self.hits = 0

    def user(self, user: bytes) -> bool:
        return self._count(self._known.user(user))

    def match(self, match: bytes) -> bool:
        return self._count(self._known.match(match))

    def _count(self, hit: bool) -> bool:
        self.asked += 1
        self.hits += hit
        return hit


def _with_index(bench: Bench, name: str, items: Items) -> Figure:
    with bench.folder() as folder:
        store = filled_index(folder / "index", items)
        try:
            (timing,) = alternate([partial(decode_and_look, items, store)])
            count = _Counting(store)
            decode_and_look(items, count)
            size = store.counts()
        finally:
            store.close()
    note = (
        f"{count.asked / len(items):.2f} look-ups a record, {count.hits / count.asked:.1%} hits "
        f"among {size['users']:,} users and {size['matches']:,} matches; {_cpu(items, timing)}"
    )
    return _figure(name, items, timing, aim=AIM, note=note)


def bare(items: Items) -> Bare:
    """The records with msgspec's decoder alone."""
    structs = {name: msgspec.json.Decoder(e.struct).decode for name, e in ENTITIES.items()}
    return [
        (structs[decode.__self__.entity.name], value)  # type: ignore[attr-defined]
        for decode, value, _ in items
    ]


def _beside_bare(name: str, items: Items, them: Bare) -> Figure:
    ours, theirs = alternate([partial(decode_all, items), partial(_decode_bare, them)])
    beside = {"msgspec alone": len(them) / theirs.wall}
    return _figure(name, items, ours, beside=beside, note=_cpu(items, ours))


def _decode_bare(bare: Bare) -> None:
    for decode, value in bare:
        try:
            decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue


def _figure(name: str, items: Items, timing: Timing, **more: Any) -> Figure:
    rate = len(items) / timing.wall
    return Figure(section="validation", name=name, value=rate, unit="records/s", **more)


def _cpu(items: Items, timing: Timing) -> str:
    return f"{len(items) / timing.cpu:,.0f} per CPU second"
