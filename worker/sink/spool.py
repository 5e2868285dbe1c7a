"""The rows of an export on their way from the snapshot to the writers: one file an entity.

Blocking: meant for a thread. Memory stays bounded by a block of rows and what `Known` remembers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.errors import StateError
from worker.sink import rocks
from worker.sink.plan import Known, Picked, Picker
from worker.sink.snapshot import Snapshot

_CHUNK: Final = 1024 * 1024


class Spooled(msgspec.Struct, frozen=True):
    """The files, each with one canonical row a line, and what became of the rows, by entity."""

    files: Mapping[str, Path]
    picked: Mapping[str, Picked]


class AbandonedError(Exception):
    """Nobody waits for the export any more. Stays within the sink."""


def spool(
    snapshot: Snapshot,
    entities: Sequence[str],
    directory: Path,
    advance: Callable[[int, int], None],
    abandoned: Callable[[], bool],
) -> Spooled:
    """Write the rows that belong into an export to files in `directory`, in the store's order.

    `advance` is told how many of the rows were looked at. Raises `AbandonedError` soon after
    `abandoned` says so, and `StateError`.
    """
    known = Known(snapshot.users_of)
    total = sum(snapshot.counts[entity] for entity in entities)
    done = 0
    files: dict[str, Path] = {}
    picked: dict[str, Picked] = {}

    def rows(entity: str, picker: Picker) -> Iterator[list[bytes]]:
        nonlocal done
        for block in snapshot.blocks(entity):
            if abandoned():
                raise AbandonedError
            yield picker.pick(block)
            done += len(block)
            advance(done, total)

    for entity in entities:
        picker = Picker(ENTITIES[entity], known)
        files[entity] = directory / f"{entity}.ndjson"
        try:
            _write(files[entity], rows(entity, picker))
        except OSError as error:
            raise StateError(rocks.in_one_line(directory, error)) from None
        picked[entity] = picker.picked()
    return Spooled(files, picked)


def _write(path: Path, blocks: Iterator[list[bytes]]) -> None:
    """In chunks of 1 MiB or more; readable by the owner only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        held: list[bytes] = []
        size = 0
        for block in blocks:
            for row in block:
                size += len(row) + 1
            held += block
            if size >= _CHUNK:
                _write_all(file.write, b"\n".join(held) + b"\n")
                held, size = [], 0
        if held:
            _write_all(file.write, b"\n".join(held) + b"\n")


def _write_all(write: Callable[[memoryview], int | None], data: bytes) -> None:
    """An unbuffered file may take less than it is given."""
    left = memoryview(data)
    while left:
        left = left[write(left) or 0 :]
