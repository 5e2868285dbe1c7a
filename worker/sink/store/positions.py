"""The position and the tail of each partition, as the store's database holds them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, cast

from rocksdict import Rdict, WriteBatch

from worker.index.tails import Tail
from worker.sink.store import rocks
from worker.stream import Partition

_POSITION: Final = b"p"
_TAIL: Final = b"t"
OFFSET: Final = struct.Struct(">Q")
_NUMBER: Final = struct.Struct(">I")


def load(db: Rdict) -> tuple[dict[Partition, int], dict[Partition, Tail]]:
    """The position and the tail of each partition. Raises ValueError for an invalid tail."""
    positions = {partition: OFFSET.unpack(value)[0] for partition, value in _items(db, _POSITION)}
    return positions, {partition: Tail.decode(value) for partition, value in _items(db, _TAIL)}


def stage(
    batch: WriteBatch, positions: Mapping[Partition, int], tails: Mapping[Partition, Tail]
) -> None:
    """Add the positions and tails to the batch."""
    for partition, offset in positions.items():
        batch[_POSITION + partition_key(partition)] = OFFSET.pack(offset)
    for partition, tail in tails.items():
        batch[_TAIL + partition_key(partition)] = tail.encode()


def partition_key(partition: Partition) -> bytes:
    """The partition as part of a key."""
    return partition.topic.encode() + b"/" + _NUMBER.pack(partition.number)


def _items(db: Rdict, prefix: bytes) -> list[tuple[Partition, bytes]]:
    pairs = db.items(from_key=prefix, read_opt=rocks.until(rocks.after(prefix)))
    return [(_place(cast("bytes", key)), cast("bytes", value)) for key, value in pairs]


def _place(key: bytes) -> Partition:
    return Partition(key[1:-5].decode(), _NUMBER.unpack(key[-4:])[0])
