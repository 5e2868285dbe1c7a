"""What a file states of itself, or an export of the file, compared with what the file holds.

A file that was cut between two rows looks whole: only the numbers in it, and beside it, show the
loss. A number that cannot be read states nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from schemas import ENTITIES
from worker.files.encodings import Readable

_READ: Final = 1 << 20


class Mismatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that a file, or the export around it, states and that is not so.

    `message` is one line that names the file. `stated` and `held` are numbers of records of
    `entity`, if the mismatch is about these.
    """

    path: str
    message: str
    entity: str | None = None
    stated: int | None = None
    held: int | None = None


OnMismatch = Callable[[Mismatch], None]
"""Called with each mismatch, once its file has been read to the end."""


class Statement:
    """What a file states of its own records. A reader fills it while it reads the file."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        """By entity, the number of records that the file states."""
        self.cut_off = False
        """Whether the last row of a file that states a number lacks cells and its line end."""


class ListedFile(msgspec.Struct, frozen=True):
    """What the file `by` (a manifest, a metadata.json) states of another file of its export."""

    by: str
    counts: Mapping[str, int]
    size: int | None = None
    sha256: str | None = None


class Fingerprint:
    """A stream that counts and hashes what is read through it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = _READ, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        data = self._stream.read(size)
        self.size += len(data)
        self._hash.update(data)
        return data

    def read_rest(self) -> None:
        """Read to the end of the stream."""
        while self.read():
            pass

    @property
    def sha256(self) -> str:
        """The SHA-256 of all data read so far."""
        return self._hash.hexdigest()


def record_counts(metadata: Any) -> dict[str, int]:
    """The numbers of records by entity in an `export_metadata` object, as far as they are such."""
    counts = metadata.get("record_counts") if isinstance(metadata, dict) else None
    if not isinstance(counts, dict):
        return {}
    return {
        entity: count
        for entity, count in counts.items()
        if entity in ENTITIES and type(count) is int and count >= 0
    }


def compare(
    name: str,
    entity: str | None,
    held: Mapping[str, int],
    statement: Statement,
    listed: ListedFile | None = None,
) -> Iterator[Mismatch]:
    """The wrong numbers of a file that was read to the end: one mismatch an entity, or one in all.

    If `entity` is given, only its records were read. What the file states of itself comes first.
    """
    told = False
    stated = {} if listed is None else listed.counts
    for one in ENTITIES:
        if entity not in (None, one):
            continue
        of = "" if entity else f" of {one}"
        own, other, count = statement.counts.get(one), stated.get(one), held.get(one, 0)
        if own not in (None, count):
            text = f"{name} says {_records(own)}{of} and holds {count}"
            yield Mismatch(name, text, one, own, count)
            told = True
        elif listed is not None and other not in (None, count):
            text = f"{name} holds {_records(count)}{of}, and {listed.by} says {other}"
            yield Mismatch(name, text, one, other, count)
            told = True
    if statement.cut_off and not told:
        yield Mismatch(name, f"{name} ends within a row: its last record is cut off", entity)


def compare_content(name: str, content: Fingerprint, listed: ListedFile) -> Iterator[Mismatch]:
    """The mismatch of a file that has other bytes than its export states."""
    if listed.size not in (None, content.size):
        text = f"{name} has {content.size} bytes, and {listed.by} says {listed.size}"
        yield Mismatch(name, text)
    elif listed.sha256 not in (None, content.sha256):
        text = f"{name} has changed since the export: {listed.by} says another SHA-256"
        yield Mismatch(name, text)


def _records(count: int | None) -> str:
    return "1 record" if count == 1 else f"{count} records"
