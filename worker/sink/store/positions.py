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
    positions = {place: OFFSET.unpack(value)[0] for place, value in _items(db, _POSITION)}
    return positions, {place: Tail.decode(value) for place, value in _items(db, _TAIL)}


def stage(
    batch: WriteBatch, positions: Mapping[Partition, int], tails: Mapping[Partition, Tail]
) -> None:
    """Add the positions and tails to the batch."""
    for place, offset in positions.items():
        batch[_POSITION + place_key(place)] = OFFSET.pack(offset)
    for place, tail in tails.items():
        batch[_TAIL + place_key(place)] = tail.encode()


def place_key(place: Partition) -> bytes:
    """The partition as part of a key."""
    return place.topic.encode() + b"/" + _NUMBER.pack(place.number)


def _items(db: Rdict, prefix: bytes) -> list[tuple[Partition, bytes]]:
    pairs = db.items(from_key=prefix, read_opt=rocks.until(rocks.after(prefix)))
    return [(_place(cast("bytes", key)), cast("bytes", value)) for key, value in pairs]


def _place(key: bytes) -> Partition:
    return Partition(key[1:-5].decode(), _NUMBER.unpack(key[-4:])[0])
