"""Finds the record behind a message that the broker refuses."""

from __future__ import annotations

from worker.core.outbox import SOURCE_HEADER
from worker.core.reading import offset_of
from worker.core.topics import Names
from worker.stream import ProducerRecord

Record = tuple[str, int]
"""A record of a task: its entity and its offset."""


def record_of(message: ProducerRecord, names: Names) -> tuple[int, Record] | None:
    """The task and the record behind this message; None if no single record is behind it.

    Rows, deletions and rejections name their record in a header. Copies of parked records,
    reservation requests and releases name it in their key. Checkpoints, replies and reservations
    have no record.
    """
    key = (message.key or b"").decode("ascii", "replace").split("/")
    if message.topic == names.parked:
        return int(key[1]), (key[0], offset_of(int(key[2])))
    if message.topic == names.claims:
        return int(key[0]), ("users", offset_of(int(key[1])))
    for name, value in message.headers:
        if name == SOURCE_HEADER:
            topic, number, offset = value.decode().split("/")
            return int(number), (names.entity_of(topic), int(offset))
    return None
