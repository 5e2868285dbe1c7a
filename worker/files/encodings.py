"""Decodes a file to text: gzip, UTF-16; refuses files that are not text.

The first bytes decide, never the name or the look of the text. The output is meant to be UTF-8:
bytes that are not are passed on, so that their record is malformed.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Final, Protocol

from worker.errors import UsageError
from worker.files.foreign import NO_TEXT
from worker.files.records import BOM

_READ: Final = 1 << 20
_PACKED_READ: Final = 16 << 10
"""Small: the end of each member of a gzip copies the rest of what was read."""
_GZIP: Final = b"\x1f\x8b"
_GZIP_WINDOW: Final = zlib.MAX_WBITS + 16
"""Tells zlib to expect the header and the checksum of gzip."""
_UTF16: Final = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_MAGICS: Final = (_GZIP, *_UTF16, *NO_TEXT)
_UNIT: Final = 4
_UNMARKED: Final = {
    b"\1\0\1\0": "utf-16-le",
    b"\0\1\0\1": "utf-16-be",
    b"\1\0\0\0": "utf-32-le",
    b"\0\0\0\1": "utf-32-be",
}
"""Encodings of ASCII text by its first four bytes, where 1 stands for any byte but NUL."""
_FREELY_UNPACKED: Final = 256 << 20
_HIGHEST_RATIO: Final = 200
"""Records compress to a tenth. Their ids alone keep them from shrinking below a fiftieth."""


class Readable(Protocol):
    """The part of a binary stream's interface that is used here."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


class ChunkStream:
    """A stream over an iterator of chunks. `read` returns available data at once, like a pipe."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.taken = 0

    def read(self, size: int = _READ, /) -> bytes:
        """Up to `size` bytes of the next chunk; empty at the end."""
        data = self._rest or next((chunk for chunk in self._chunks if chunk), b"")
        if size >= 0:
            data, self._rest = data[:size], data[size:]
        else:
            self._rest = b""
        self.taken += len(data)
        return data


def as_utf8(stream: Readable, name: str, *, freely: int | None = None) -> ChunkStream:
    """The text of a stream: gzip is unpacked; UTF-16 becomes UTF-8 with a BOM.

    UTF-16 without a BOM is recognised if its first two characters are ASCII. Memory is bounded for
    any input.

    Raises UsageError, now or while reading, if the stream is not text or its gzip is broken. Also
    if it unpacks to more than 200 times its size, and to more than `freely` bytes (256 MiB).
    """
    start, chunks = _started(_chunks_of(stream))
    if start.startswith(_GZIP):
        start, chunks = _started(
            _gunzip(chunks, name, _FREELY_UNPACKED if freely is None else freely)
        )
        if start.startswith(_GZIP):
            raise UsageError(f"{name}: is gzip inside gzip: unpack it once")
    for magic, why in NO_TEXT.items():
        if start.startswith(magic):
            raise UsageError(f"{name}: {why}")
    for magic, codec in _UTF16.items():
        if start.startswith(magic):
            return ChunkStream(_recoded(chunks, codec, len(magic)))
    unmarked = _UNMARKED.get(bytes(byte and 1 for byte in start[:_UNIT]))
    if unmarked is None:
        return ChunkStream(chunks)
    if unmarked.startswith("utf-32"):
        raise UsageError(f"{name}: is UTF-32: save it as UTF-8")
    return ChunkStream(_recoded(chunks, unmarked, 0))


def _chunks_of(stream: Readable) -> Iterator[bytes]:
    # read1 returns what a pipe has; read would wait for a full buffer.
    read = getattr(stream, "read1", stream.read)
    while data := read(_READ):
        yield data


def _started(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, enough to recognise them, and all chunks. Waits for no more of a pipe."""
    start = b""
    while (
        not start
        or (len(start) < _UNIT and 0 in start)
        or any(magic.startswith(start) and len(start) < len(magic) for magic in _MAGICS)
    ):
        data = next(chunks, b"")
        if not data:
            break
        start += data
    return start, chain([start], chunks)


def _gunzip(chunks: Iterator[bytes], name: str, freely: int) -> Iterator[bytes]:
    """Unpack every member of a gzip. NULs may stand behind each.

    No `GzipFile`: it reads the names in a header byte by byte, which costs seconds a megabyte.
    """
    packed = ChunkStream(chunks)
    unpacked = 0
    member = zlib.decompressobj(_GZIP_WINDOW)
    while rest := packed.read(_PACKED_READ):
        while rest:
            if member.eof:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                member = zlib.decompressobj(_GZIP_WINDOW)
            try:
                data = member.decompress(rest, _READ)
            except zlib.error as error:
                raise _broken(name) from error
            rest = member.unused_data or member.unconsumed_tail
            unpacked += len(data)
            if unpacked > max(freely, packed.taken * _HIGHEST_RATIO):
                raise UsageError(
                    f"{name}: unpacks to more than {_HIGHEST_RATIO} times its size; "
                    "if that is right, unpack it first"
                )
            if data:
                yield data
    if not member.eof:
        raise _broken(name)


def _broken(name: str) -> UsageError:
    return UsageError(f"{name}: its gzip is broken or cut off")


def _recoded(chunks: Iterator[bytes], codec: str, skip: int) -> Iterator[bytes]:
    """Recode to UTF-8 with a BOM. Lone surrogates and half characters become invalid UTF-8."""
    decoder = codecs.getincrementaldecoder(codec)("surrogatepass")
    yield BOM
    for chunk in chunks:
        yield decoder.decode(chunk[skip:]).encode("utf-8", "surrogatepass")
        skip = 0
    try:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        yield b"\xff"
