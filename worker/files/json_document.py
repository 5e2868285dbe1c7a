"""JSON documents as we export them: one object that holds an array an entity.

The document is never held as a whole: it is cut into its rows by counting brackets outside
strings, and a row is handed on byte for byte, whatever it holds. Only the frame (names, commas,
brackets around the rows) is judged here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.files.lines import read_chunks
from worker.files.records import READ_LIMIT, Collector, FileRecord

_METADATA: Final = "export_metadata"
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_PLAIN: Final = re.compile(
    rb"""[^"{}\[\]]*+ (?: " [^"\\]*+ (?: \\. [^"\\]*+ )*+ " [^"{}\[\]]*+ )*+""",
    re.DOTALL | re.VERBOSE,
)
"""Outside strings: up to the next bracket, over all strings that are complete in the chunk."""
_STRING: Final = re.compile(rb'[^"\\]*+')
_SCALAR_END: Final = re.compile(rb"[,\]} \t\r\n]")
_LONGEST_NAME: Final = 1000


def read_document(
    stream: BinaryIO, entity: str | None, name: str, *, limit: int = READ_LIMIT
) -> Iterator[FileRecord]:
    """The rows of a document, in its order; only those of one entity if one is given.

    UsageError, naming file and line, where the frame is broken or an array is of no entity.
    """
    text = _Scanner(stream, name)
    text.expect(b"{")
    if text.peek() == b"}":
        text.expect(b"}")
    else:
        while True:
            line = text.line
            key = text.name()
            text.expect(b":")
            if key == _METADATA:
                text.value(Collector(0))
            elif key in ENTITIES:
                for record in _rows(text, key, name, limit):
                    if entity in (None, key):
                        yield record
            else:
                raise UsageError(
                    f"{name}:{line}: not an export: it has a field that is no entity "
                    "(one record a line is NDJSON: name it <entity>.ndjson)"
                )
            if text.expect(b",}") == b"}":
                break
    if text.peek():
        raise UsageError(f"{name}:{text.line}: something follows the end of the document")


def _rows(text: _Scanner, entity: str, name: str, limit: int) -> Iterator[FileRecord]:
    text.expect(b"[")
    if text.peek() == b"]":
        text.expect(b"]")
        return
    while True:
        text.peek()
        line = text.line
        row = Collector(limit)
        text.value(row)
        yield FileRecord(entity, name, line, row.value, oversize=row.oversize, sha256=row.sha256)
        if text.expect(b",]") == b"]":
            return


class _Scanner:
    """Moves through a document, a chunk of it at a time; `line` is where it stands."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._chunks = read_chunks(stream)
        self._name = name
        self._data = b""
        self._at = 0
        self.line = 1

    def peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self._data, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._more():
                return b""

    def expect(self, allowed: bytes) -> bytes:
        """The next byte, which must be one of these."""
        byte = self.peek()
        if not byte or byte not in allowed:
            raise self._broken(" or ".join(chr(one) for one in allowed))
        self._at += 1
        return byte

    def name(self) -> str:
        """The name of a field."""
        if self.peek() != b'"':
            raise self._broken('"')
        collector = Collector(_LONGEST_NAME)
        self.value(collector)
        try:
            return msgspec.json.decode(collector.value, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._broken("the name of a field") from error

    def value(self, into: Collector) -> None:
        """Any value, byte for byte."""
        first = self.peek()
        if first == b'"':
            self._take(1, into)
            self._string(into)
        elif first in (b"{", b"["):
            self._nested(into)
        elif first in (b"", b",", b"]", b"}", b":"):
            raise self._broken("a value")
        else:
            while self._at < len(self._data) or self._more():
                match = _SCALAR_END.search(self._data, self._at)
                self._take((match.start() if match else len(self._data)) - self._at, into)
                if match:
                    return

    def _nested(self, into: Collector) -> None:
        depth = 0
        while self._at < len(self._data) or self._more():
            match = _PLAIN.match(self._data, self._at)
            end = match.end() if match else self._at
            byte = self._data[end : end + 1]
            self._take(end + len(byte) - self._at, into)
            if byte == b'"':
                self._string(into)
            elif byte:
                depth += 1 if byte in b"{[" else -1
                if not depth:
                    return
        raise self._broken("the end of a row")

    def _string(self, into: Collector) -> None:
        """The rest of a string, whose opening quote has been taken."""
        while self._at < len(self._data) or self._more():
            match = _STRING.match(self._data, self._at)
            end = match.end() if match else self._at
            byte = self._data[end : end + 1]
            self._take(end + len(byte) - self._at, into)
            if byte == b'"':
                return
            if byte and (self._at < len(self._data) or self._more()):
                self._take(1, into)  # what a backslash escapes
        raise self._broken("the end of a string")

    def _take(self, count: int, into: Collector) -> None:
        start = self._at
        self._advance(start + count)
        into.add(self._data[start : self._at])

    def _advance(self, to: int) -> None:
        self.line += self._data.count(b"\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """The next chunk; only where the present one is used up."""
        self._data, self._at = next(self._chunks, b""), 0
        return bool(self._data)

    def _broken(self, expected: str) -> UsageError:
        return UsageError(
            f"{self._name}:{self.line}: not the JSON document of an export: "
            f"expected {expected} here"
        )
