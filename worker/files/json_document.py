"""JSON documents: as we export them, one object that holds an array an entity, or plain ones.

Plain is an array of records (`[{…}, …]`), or one record after the other (`{…} {…}`), however
they are indented; of which entity they are must be known then. The document is never held as a
whole: it is cut into its rows by counting brackets outside strings, and a row is handed on byte
for byte, whatever it holds. Only the frame (names, commas, brackets around the rows) is judged
here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.files.encodings import Readable
from worker.files.foreign import markup
from worker.files.lines import read_chunks
from worker.files.records import BOM, READ_LIMIT, Collector, FileRecord, Notice
from worker.files.table import COLUMNS, shown

_METADATA: Final = "export_metadata"
_FIELDS: Final = frozenset({_METADATA, *ENTITIES})
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_PLAIN: Final = re.compile(
    rb"""[^"{}\[\]]*+ (?: " [^"\\]*+ (?: \\. [^"\\]*+ )*+ " [^"{}\[\]]*+ )*+""",
    re.DOTALL | re.VERBOSE,
)
"""Outside strings: up to the next bracket, over all strings that are complete in the chunk."""
_STRING: Final = re.compile(rb'[^"\\]*+')
_SCALAR_END: Final = re.compile(rb"[,\]} \t\r\n]")
_LONGEST_NAME: Final = 1000
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
) -> Iterator[FileRecord]:
    """The rows of a document, in its order; only those of one entity if one is given.

    `notice` then gets one line about the others. UsageError, naming file and line, where the frame
    is broken, an array is of no entity, an export has none of the given one, or the document is
    plain and no entity is given.
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
        yield from _fields(text, entity, name, limit, notice)
    if text.peek():
        raise UsageError(f"{name}:{text.line}: something follows the end of the document")


def tells_entities(stream: Readable, name: str) -> bool:
    """Whether this is the document of an export, which says of each array what it holds.

    Where it is broken, that is for `read_document` to say.
    """
    text = _Scanner(stream, name)
    try:
        text.expect(b"{")
        return text.peek() == b"}" or text.name(Collector(_LONGEST_NAME)) in _FIELDS
    except UsageError:
        return False


def wrapped_in(stream: Readable, entity: str | None, name: str) -> str | None:
    """The field that holds the records of a wrapper such as `{"data": [{…}, …]}`.

    Empty where they stand deeper, under names that may be anybody's. None where this is none: no
    object, or its first object has nothing nested, or a field that is a column of some entity and
    no array of objects, or some of the entity's key. A wrapper may have a `status`, which is a
    column too.
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
        pass  # for `read_document` to say, if this is no wrapper
    if not keys & COLUMNS:
        return fields.get(b"[", "" if b"{" in fields else None)
    return next(iter(lists), None) if _is_no_record(keys, entity) else None


def _is_no_record(keys: set[str], entity: str | None) -> bool:
    """Whether nothing of the entity's key is there; without one, single records are not read."""
    return entity is None or keys.isdisjoint(ENTITIES[entity].key)


def _fields(
    text: _Scanner, entity: str | None, name: str, limit: int, notice: Notice
) -> Iterator[FileRecord]:
    """The rows of an export's document, or else records one after the other."""
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
            text.value(Collector(0))
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


def _records(
    text: _Scanner, start: bytes, line: int, entity: str, name: str, limit: int
) -> Iterator[FileRecord]:
    """Records one after the other; of the first, `start` has been read (without its blanks)."""
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
        yield _record(entity, name, line, row)
        if text.expect(b",]") == b"]":
            return


class _Scanner:
    """Moves through a document, a chunk of it at a time; `line` is where it stands."""

    def __init__(self, stream: Readable, name: str) -> None:
        self._chunks = read_chunks(stream)
        self._name = name
        self._data = b""
        self._at = 0
        self.line = 1

    def rest(self) -> bytes:
        """What of the present chunk has not been read."""
        return self._data[self._at :]

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
            raise self.broken(" or ".join(chr(one) for one in allowed))
        self._at += 1
        return byte

    def name(self, raw: Collector) -> str:
        """The name of a field, which is collected as it stands, too."""
        if self.peek() != b'"':
            raise self.broken('"')
        self.value(raw)
        try:
            return msgspec.json.decode(raw.value, type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self.broken("the name of a field") from error

    def value(self, into: Collector) -> None:
        """Any value, byte for byte."""
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
        """An object or array, byte for byte; the rest of one if it is `depth` brackets open."""
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
        raise self.broken("the end of a row")

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
        raise self.broken("the end of a string")

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

    def broken(self, expected: str) -> UsageError:
        """What was found instead is told if it is structure, never if it may be somebody's data."""
        found = self.peek()
        told = _STRUCTURE.get(found, "something else")
        return UsageError(
            f"{self._name}:{self.line}: not a JSON document of records: expected {expected}, "
            f"found {told}"
        )
