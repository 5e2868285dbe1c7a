"""Reads JSON documents: those of exports, one object with an array an entity, and plain ones.

A plain document is an array of records (`[{…}, …]`), or one record after the other (`{…} {…}`),
with any indentation. Its entity must be known. A document is never in memory as a whole: it is
split into rows by counting brackets outside strings. A row is passed on byte for byte, whatever it
holds. Only the frame (names, commas, brackets around the rows) is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import inf
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.files.encodings import Readable
from worker.files.foreign import markup
from worker.files.lines import read_chunks
from worker.files.records import BOM, READ_LIMIT, Collector, FileRecord, Notice
from worker.files.stated import Statement, record_counts
from worker.files.tabular import COLUMNS, shown

_METADATA: Final = "export_metadata"
_FIELDS: Final = frozenset({_METADATA, *ENTITIES})
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_STEP: Final = re.compile(
    rb"""[^"{}\[\]]*+ (?: " [^"\\]*+ (?: \\. [^"\\]*+ )*+ " [^"{}\[\]]*+ )*+
         (?: ([{\[]++) | ([}\]]++) | (") | \Z )""",
    re.DOTALL | re.VERBOSE,
)
"""From outside a string past all strings that end within the chunk, and past the next brackets.

Its group is `_OPENING` or `_CLOSING`. `_QUOTE` opens a string that does not end within the chunk.
"""
_OPENING, _CLOSING, _QUOTE = 1, 2, 3
_STRING: Final = re.compile(rb'[^"\\]*+ (?: \\. [^"\\]*+ )*+', re.DOTALL | re.VERBOSE)
_SCALAR_END: Final = re.compile(rb"[,\]} \t\r\n]")
_LONGEST_NAME: Final = 1000
_DEEPEST: Final = 100
"""How deep brackets may be nested in a record of a plain document."""
_LONGEST_METADATA: Final = 1 << 20
_STRUCTURE: Final = {
    b"": "the end of the file",
    b'"': "a string",
    BOM[:1]: "a byte order mark",
} | {one.encode(): one for one in "{}[]:,"}


def read_document(
    stream: Readable,
    entity: str | None,
    name: str,
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
    statement: Statement | None = None,
) -> Iterator[FileRecord]:
    """The rows of a document in its order; if `entity` is given, its rows only.

    `notice` then gets one line that names the others. `statement` gets the numbers of records in
    the metadata of an export. Raises UsageError, naming file
    and line, if the frame is broken or an array is of no entity. Also if an export has no array of
    `entity`, or if the document is plain and `entity` is None.
    """
    text = _Scanner(stream, name)
    first = text.peek()
    if why := markup(text.rest()):
        raise UsageError(f"{name}: {why}")
    if first not in (b"[", b"{"):
        raise text.broken("{ or [")
    if first == b"[" and entity is not None:
        yield from _rows(text, entity, name, limit)
    elif first == b"[":
        raise UsageError(
            f"{name}:{text.line}: an array does not tell its entity: say --entity, or name the "
            "file <entity>.json"
        )
    else:
        yield from _fields(text, entity, name, limit, notice, statement or Statement())
    if text.peek():
        raise UsageError(f"{name}:{text.line}: something follows the end of the document")


def read_plain(
    stream: Readable, entity: str, name: str, *, limit: int = READ_LIMIT
) -> Iterator[FileRecord]:
    """The records of a plain document: an array of them, or one after the other.

    Raises UsageError, naming the line, if the frame is broken, if a record is an array or if its
    brackets are nested too deeply: the records before it were yielded.
    """
    text = _Scanner(stream, name, deepest=_DEEPEST)
    if text.peek() == b"[":
        yield from _rows(text, entity, name, limit, arrays=False)
        if text.peek():
            raise UsageError(f"{name}:{text.line}: something follows the end of the document")
        return
    while first := text.peek():
        if first != b"{":
            raise text.broken("{ or [")
        line = text.line
        row = Collector(limit)
        text.value(row)
        yield _record(entity, name, line, row)


def names_entities(stream: Readable, name: str) -> bool:
    """Whether this is the document of an export, which names the entity of each array.

    False for a broken document: `read_document` reports that.
    """
    text = _Scanner(stream, name)
    try:
        text.expect(b"{")
        return text.peek() == b"}" or text.name(Collector(_LONGEST_NAME)) in _FIELDS
    except UsageError:
        return False


def wrapped_in(stream: Readable, entity: str | None, name: str) -> str | None:
    """The field that holds the records of a wrapper such as `{"data": [{…}, …]}`.

    Empty if the records are nested deeper, under any names. None if this is not a wrapper: it is
    not an object, or its first object has nothing nested.

    A wrapper may have a field like `status`, which is also a column of some entity. Then it must
    have an array of objects, and no field of the key of `entity`.
    """
    text = _Scanner(stream, name)
    fields: dict[bytes, str] = {}
    keys: set[str] = set()
    lists: list[str] = []
    try:
        text.expect(b"{")
        while True:
            key = text.name(Collector(_LONGEST_NAME))
            keys.add(key)
            text.expect(b":")
            fields.setdefault(text.peek(), key)
            value = Collector(_LONGEST_NAME)
            try:
                text.value(value)
            finally:
                if value.value[:1] == b"[" and value.value[1:].lstrip()[:1] == b"{":
                    lists.append(key)
            if text.expect(b",}") == b"}":
                break
    except UsageError:
        pass  # if this is no wrapper, `read_document` reports it
    if not keys & COLUMNS:
        return fields.get(b"[", "" if b"{" in fields else None)
    return next(iter(lists), None) if _is_no_record(keys, entity) else None


def _is_no_record(keys: set[str], entity: str | None) -> bool:
    """Whether no field of the entity's key is there. Without an entity, records are not read."""
    return entity is None or keys.isdisjoint(ENTITIES[entity].key)


def _fields(
    text: _Scanner,
    entity: str | None,
    name: str,
    limit: int,
    notice: Notice,
    statement: Statement,
) -> Iterator[FileRecord]:
    """The rows of an export's document; or of records one after the other."""
    line = text.line
    text.expect(b"{")
    at_start = True
    found: set[str] = set()
    left_out: dict[str, None] = {}
    done = text.peek() == b"}" and bool(text.expect(b"}"))
    while not done:
        field_line = text.line
        raw = Collector(_LONGEST_NAME)
        key = text.name(raw)
        if at_start and entity is not None and key not in _FIELDS:
            yield from _records(text, b"{" + raw.value, line, entity, name, limit)
            return
        at_start = False
        text.expect(b":")
        if key == _METADATA:
            metadata = Collector(_LONGEST_METADATA)
            text.value(metadata)
            statement.counts |= _stated(metadata)
        elif key in ENTITIES:
            found.add(key)
            for record in _rows(text, key, name, limit):
                if entity in (None, key):
                    yield record
                else:
                    left_out[key] = None
        else:
            raise UsageError(
                f"{name}:{field_line}: not an export: its field {shown(key)} is no entity (of "
                "single records say which they are: --entity, or <entity>.json; one a line is "
                "<entity>.ndjson)"
            )
        done = text.expect(b",}") == b"}"
    if left_out:
        notice(f"{name}: left out, of other entities: {', '.join(left_out)}")
    if entity is not None and entity not in found:
        raise UsageError(f"{name}: it holds no array of {entity}: leave --entity out to read all")


def _stated(metadata: Collector) -> dict[str, int]:
    """The numbers of records by entity in the metadata; none if it cannot be read."""
    try:
        return record_counts(msgspec.json.decode(metadata.value))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def _records(
    text: _Scanner, start: bytes, line: int, entity: str, name: str, limit: int
) -> Iterator[FileRecord]:
    """Records one after the other. `start` was read of the first already (without its blanks)."""
    row = Collector(limit)
    row.add(start)
    text.nested(row, 1)
    yield _record(entity, name, line, row)
    while text.peek():
        line = text.line
        row = Collector(limit)
        text.value(row)
        yield _record(entity, name, line, row)


def _record(entity: str, name: str, line: int, row: Collector) -> FileRecord:
    return FileRecord(entity, name, line, row.value, oversize=row.oversize, sha256=row.sha256)


def _rows(
    text: _Scanner, entity: str, name: str, limit: int, *, arrays: bool = True
) -> Iterator[FileRecord]:
    text.expect(b"[")
    if text.peek() == b"]":
        text.expect(b"]")
        return
    while True:
        if text.peek() == b"[" and not arrays:
            raise text.broken("{")
        line = text.line
        row = Collector(limit)
        text.value(row)
        yield _record(entity, name, line, row)
        if text.expect(b",]") == b"]":
            return


class _Scanner:
    """Moves through a document, one chunk in memory; `line` is the current line."""

    def __init__(self, stream: Readable, name: str, deepest: float = inf) -> None:
        """Brackets nested more than `deepest` raise UsageError."""
        self._chunks = read_chunks(stream)
        self._deepest = deepest
        self._name = name
        self._data = b""
        self._at = 0
        self.line = 1

    def rest(self) -> bytes:
        """The unread part of the current chunk."""
        return self._data[self._at :]

    def peek(self) -> bytes:
        """The next byte that is not white space; empty at the end."""
        while True:
            match = _SPACE.match(self._data, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._more():
                return b""

    def expect(self, allowed: bytes) -> bytes:
        """The next byte. Raises UsageError if it is not one of `allowed`."""
        byte = self.peek()
        if not byte or byte not in allowed:
            raise self.broken(" or ".join(chr(one) for one in allowed))
        self._at += 1
        return byte

    def name(self, raw: Collector) -> str:
        """The name of a field. Its bytes are collected in `raw`."""
        if self.peek() != b'"':
            raise self.broken('"')
        self.value(raw)
        try:
            return msgspec.json.decode(raw.value, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self.broken("the name of a field") from error

    def value(self, into: Collector) -> None:
        """Collect any value, byte for byte."""
        first = self.peek()
        if first == b'"':
            self._take(1, into)
            self._string(into)
        elif first in (b"{", b"["):
            self.nested(into)
        elif first in (b"", b",", b"]", b"}", b":"):
            raise self.broken("a value")
        else:
            while self._at < len(self._data) or self._more():
                match = _SCALAR_END.search(self._data, self._at)
                self._take((match.start() if match else len(self._data)) - self._at, into)
                if match:
                    return

    def nested(self, into: Collector, depth: int = 0) -> None:
        """Collect an object or array, byte for byte; or its rest, if `depth` brackets are open."""
        deepest = self._deepest
        while self._at < len(self._data) or self._more():
            for step in _STEP.finditer(self._data, self._at):
                kind, end = step.lastindex, step.end()
                if kind == _OPENING:
                    depth += end - step.start(_OPENING)
                    if depth > deepest:
                        line = self.line
                        raise UsageError(f"{self._name}:{line}: brackets are nested too deeply")
                elif kind == _CLOSING:
                    start = step.start(_CLOSING)
                    if end - start >= depth:
                        self._take(start + depth - self._at, into)
                        return
                    depth -= end - start
                else:
                    self._take(end - self._at, into)
                    if kind == _QUOTE:
                        self._string(into)
                    break
        raise self.broken("the end of a row")

    def _string(self, into: Collector) -> None:
        """Collect the rest of a string, after its opening quote."""
        while self._at < len(self._data) or self._more():
            match = _STRING.match(self._data, self._at)
            end = match.end() if match else self._at
            byte = self._data[end : end + 1]
            self._take(end + len(byte) - self._at, into)
            if byte == b'"':
                return
            if byte and (self._at < len(self._data) or self._more()):
                self._take(1, into)  # the escaped character
        raise self.broken("the end of a string")

    def _take(self, count: int, into: Collector) -> None:
        start = self._at
        self._advance(start + count)
        into.add(self._data[start : self._at])

    def _advance(self, to: int) -> None:
        self.line += self._data.count(b"\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Go to the next chunk. Call this only when the current one is used up."""
        self._data, self._at = next(self._chunks, b""), 0
        return bool(self._data)

    def broken(self, expected: str) -> UsageError:
        """The error for a broken frame. It quotes structure that was found, but never data."""
        found = self.peek()
        what = _STRUCTURE.get(found, "something else")
        return UsageError(
            f"{self._name}:{self.line}: not a JSON document of records: expected {expected}, "
            f"found {what}"
        )
