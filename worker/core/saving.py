"""Computes the checkpoint of a task from its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from schemas import ENTITIES
from worker.core.books import Books
from worker.core.checkpoint import Checkpoint
from worker.core.parking import Parking
from worker.core.reading import Reading
from worker.core.restoring import Outdated


def parked_now(reading: Reading, parking: Parking, outdated: Iterable[Outdated]) -> dict[str, int]:
    """By entity, how many records wait: parked, to be read again, or `outdated`."""
    waiting = Counter({e: parking.count(e) + len(reading.first_read(e)) for e in ENTITIES})
    waiting.update(record.envelope.entity for record in outdated)
    return {entity: count for entity, count in waiting.items() if count}


def checkpoint_of(
    reading: Reading, parking: Parking, books: Books, reserved: int, unneeded: int
) -> Checkpoint:
    """The checkpoint of a task in this state, with so many reservations and unneeded copies."""
    judged = {entity: reading.reached.get(entity, 0) for entity in ENTITIES}
    in_memory: dict[str, dict[int, list[int]]] = {}
    for parked in parking.in_memory():
        times = in_memory.setdefault(parked.entity, {})
        times.setdefault(parked.first_read.wall, []).append(parked.message.offset)
    for entity in ENTITIES:
        for offset, moment in reading.first_read(entity).items():
            in_memory.setdefault(entity, {}).setdefault(moment.wall, []).append(offset)
            judged[entity] = min(judged[entity], offset)
        lowest = parking.lowest(entity)
        if lowest is not None:
            judged[entity] = min(judged[entity], max(-1, lowest - reading.ordinal(entity, 0)))
    oldest = parking.oldest()
    return Checkpoint(
        reading.reached,
        judged,
        dict(reading.topics),
        dict(reading.watermarks),
        dict(reading.earlier),
        in_memory,
        dict(reading.arrived),
        dict(books.counts),
        dict(books.incidents),
        books.worker,
        books.since,
        0 if oldest is None else oldest.wall,
        reserved,
        dict(books.seen),
        unneeded,
    )


def says_more(checkpoint: Checkpoint, before: Checkpoint | None) -> bool:
    """Whether the checkpoint is worth a transaction of its own.

    Passing a transaction marker in claims or grants is not: saving it would create another marker.
    """
    return before is None or _essence(checkpoint) != _essence(before)


def _essence(checkpoint: Checkpoint) -> object:
    read = {entity: checkpoint.next.get(entity, 0) for entity in ENTITIES}
    return read, checkpoint.judged, checkpoint.in_memory, checkpoint.incidents
