"""Parses XML in pieces with expat: names without prefixes, no document types, everything bounded.

Rows and shared strings come by the million and mostly look alike. A regular expression parses the
plain ones five times as fast as expat, and expat never sees them. Anything that is not plain in
every byte goes to expat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Protocol
from xml.parsers import expat

LONGEST: Final = 16 << 20
"""Bytes of XML of one row or shared string at most."""
TEXT: Final = "[^<>&\x00-\x08\x0b-\x1f\ufffe\uffff]*"
"""Text that a regular expression may take, since expat would pass it on unchanged."""
_READ: Final = 1 << 18
_DEEPEST: Final = 50


class BrokenPart(ValueError):
    """The content of a part is not what a spreadsheet writes; the message says what is wrong."""


class OtherFormat(BrokenPart):
    """The file is of another kind; the message says which, and what to do."""


class OpenPart(Protocol):
    """The part of an open file's interface that is used here."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


class Handler:
    """Takes the elements of a part. `depth` counts open elements; `done` ends the parsing."""

    depth = 0
    done = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins; `tag` has no prefix."""

    def end(self, tag: str) -> None:
        """An element ends."""

    def text(self, text: str) -> None:
        """A piece of text."""


class ItemHandler(Handler):
    """Takes the items of a part: many elements of one kind, directly inside one container."""

    container = ""
    item = ""
    taken = 0
    """Grows with each item."""
    inside = 0
    """The depth at which the container is open, else 0."""

    def take_plain(self, text: str) -> bool:
        """Take one item, given without its end tag, if it is plain; returns whether it was.

        expat parses an item that is not plain.
        """
        raise NotImplementedError


def read_whole(part: OpenPart, handler: Handler, longest: int) -> None:
    """Parse a part of at most `longest` bytes. Raises BrokenPart, or ExpatError for invalid XML."""
    parser = _parser(handler)
    size = 0
    while data := part.read(_READ):
        size += len(data)
        if size > longest:
            raise BrokenPart(f"more than {longest >> 20} MiB")
        parser.Parse(data, False)  # noqa: FBT003, expat takes no keywords
    parser.Parse(b"", True)  # noqa: FBT003


def read_items(part: OpenPart, handler: ItemHandler) -> Iterator[None]:
    """Let the handler take the items of a part; yields now and then, so that they can be used.

    Once the handler is done, the rest of the part may be anything. Raises as `read_whole`, also if
    an item is longer than `LONGEST`.
    """
    feed = _Feed(handler)
    while data := part.read(_READ):
        if not handler.done:  # read on to the end, where zipfile checks the CRC
            feed.add(data)
            yield
    feed.close()
    yield


class _Feed:
    """Splits the bytes of a part into items, and has each taken in the fastest safe way.

    Searching raw bytes for end tags is safe once expat has seen the container open. It stops being
    safe where a comment, CDATA or a processing instruction begins: these may contain end tags.
    """

    def __init__(self, handler: ItemHandler) -> None:
        self._handler = handler
        self._parser = _parser(handler)
        self._parser.XmlDeclHandler = self._declared
        self._opening = re.compile(rb"<%s(?:\s[^<>]*)?>" % handler.container.encode())
        self._end = f"</{handler.item}>"
        self._cutting = self._utf8 = True
        self._held = b""
        self._since = 0
        """Bytes since the last item."""

    def add(self, data: bytes) -> None:
        """Add the next bytes of the part."""
        handler = self._handler
        before = handler.taken
        self._since += len(data)
        if self._cutting and not handler.inside:
            data = self._open(data)
        if self._cutting and handler.inside:
            self._cut(self._held + data)
        else:
            self._parse(self._held + data)
            self._held = b""
        if handler.taken > before:
            self._since = len(self._held)
        elif self._since > LONGEST:
            raise BrokenPart(f"more than {LONGEST >> 20} MiB without the end of a {handler.item}")

    def close(self) -> None:
        """End the part: parse what is left."""
        self._parse(self._held, last=True)

    def _parse(self, data: bytes, *, last: bool = False) -> None:
        try:
            self._parser.Parse(data, last)
        except (BrokenPart, expat.ExpatError):
            if not self._handler.done:
                raise

    def _open(self, data: bytes) -> bytes:
        """Pass the bytes before the first item to expat; returns the rest."""
        found = self._opening.search(data)
        head = b"<!" if found is None else data[: found.end()]
        if b"<!" in head or head.count(b"<?") > 1:
            self._cutting = False
            return data
        self._parse(head)
        self._cutting = self._utf8 and self._between
        return data[len(head) :]

    @property
    def _between(self) -> bool:
        return bool(self._handler.inside) and self._handler.depth == self._handler.inside

    def _cut(self, data: bytes) -> None:
        """Take complete items; hold the rest."""
        last = data.rfind(self._end.encode())
        if last < 0:
            self._held = data
            return
        whole, self._held = data[: last + len(self._end)], data[last + len(self._end) :]
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            text = ""  # expat reports what is wrong
        items = text.split(self._end)
        for n, item in enumerate(items[:-1]):
            if self._handler.take_plain(item):
                continue
            if "<!" in item or "<?" in item:
                self._stop_cutting(self._end.join(items[n:]).encode())
                return
            self._parse((item + self._end).encode())
            if not self._between:
                self._stop_cutting(self._end.join(items[n + 1 :]).encode())
                return
        if not text:
            self._stop_cutting(whole)

    def _stop_cutting(self, rest: bytes) -> None:
        self._cutting = False
        self._parse(rest + self._held)
        self._held = b""

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        self._utf8 = encoding is None or encoding.lower() in {"utf-8", "us-ascii"}


def _parser(handler: Handler) -> expat.XMLParserType:
    start, end = handler.start, handler.end

    def started(tag: str, attributes: dict[str, str]) -> None:
        handler.depth += 1
        if handler.depth > _DEEPEST:
            raise BrokenPart(f"elements nested deeper than {_DEEPEST}")
        start(tag.rpartition(":")[2] if ":" in tag else tag, attributes)

    def ended(tag: str) -> None:
        end(tag.rpartition(":")[2] if ":" in tag else tag)
        handler.depth -= 1

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = handler.text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


def _refuse_doctype(*_: object) -> None:
    raise BrokenPart("a document type declaration")
