"""Lines of a byte stream: numbered, and in memory only up to a limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Final

import msgspec

from worker.files.encodings import Readable
from worker.files.records import BOM, Collector

_READ: Final = 1 << 20
_ENDS: Final = (b"\n", b"\r")


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line; `oversize` and `sha256` as in FileRecord."""

    number: int
    data: bytes
    oversize: int = 0
    sha256: str | None = None


def read_lines(stream: Readable, limit: int) -> Iterator[Line]:
    """The lines of a stream without their ends. Only LF ends a line.

    A BOM at the start of the stream is skipped. An empty rest after the last LF is not a line.
    Lines are yielded as soon as they arrive, even from a pipe.
    """
    number = 1
    collector = Collector(limit)
    for data in read_chunks(stream):
        first, *others = data.split(b"\n")
        collector.add(first)
        if not others:
            continue
        yield Line(number, collector.value, collector.oversize, collector.sha256)
        number += 1
        *whole, rest = others
        for line in whole:
            if len(line) > limit:
                collector = Collector(limit)
                collector.add(line)
                yield Line(number, collector.value, collector.oversize, collector.sha256)
            else:
                yield Line(number, line)
            number += 1
        collector = Collector(limit)
        collector.add(rest)
    if collector.size:
        yield Line(number, collector.value, collector.oversize, collector.sha256)


def read_any_lines(stream: Readable, limit: int) -> Iterator[Line]:
    """The lines of a stream with their ends: LF, CRLF or CR, even mixed.

    A BOM at the start of the stream is skipped. A line that ends in CR is yielded only when more
    has arrived, since an LF may follow.
    """
    number = 1
    collector = Collector(limit)
    open_end = b""
    for chunk in chain(read_chunks(stream), [b""]):
        data = open_end + chunk
        open_end = b"\r" if chunk and data.endswith(b"\r") else b""
        for piece in data[: len(data) - len(open_end)].splitlines(keepends=True):
            whole = piece.endswith(_ENDS)
            if whole and not collector.size and len(piece) <= limit:
                yield Line(number, piece)
                number += 1
                continue
            collector.add(piece)
            if whole:
                yield Line(number, collector.value, collector.oversize, collector.sha256)
                number += 1
                collector = Collector(limit)
    if collector.size:
        yield Line(number, collector.value, collector.oversize, collector.sha256)


def read_chunks(stream: Readable) -> Iterator[bytes]:
    """The non-empty chunks of a stream as they arrive, without a BOM at the start."""
    # read1 returns what a pipe has; read would wait for a full buffer.
    read = getattr(stream, "read1", stream.read)
    start = b""
    while len(start) < len(BOM) and BOM.startswith(start):
        data = read(_READ)
        if not data:
            break
        start += data
    if start := start.removeprefix(BOM):
        yield start
    while data := read(_READ):
        yield data
