"""The parts of a workbook in its ZIP archive, and how they refer to each other (ECMA-376, part 2).

Part names are compared without case, as the standard says, and without the usual mistakes of
programs: backslashes, a leading slash, percent-encoding. The unpacked size of a part is bounded.
"""

from __future__ import annotations

import errno
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final
from urllib.parse import unquote
from xml.parsers.expat import ErrorString, ExpatError

import msgspec

from worker.files.xlsx.xml import BrokenPart, Handler, read_whole

_MOST_PARTS: Final = 10_000
_MOST_RELATIONS: Final = 65_536
_ALWAYS: Final = 256 << 20
"""Bytes to which any part may unpack."""
_RATIO: Final = 200
"""A larger part may unpack to this many times its packed size."""
_LONGEST_RELATIONS: Final = 16 << 20

_NO_ENCODING: Final = "XML in an unknown encoding"
BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ExpatError,
    EOFError,
    LookupError,  # an unknown encoding
    NotImplementedError,  # an unknown compression method
    RuntimeError,  # a password is needed
    ValueError,  # BrokenPart among them
)
"""Exceptions of zipfile and expat for files that are not what they claim to be."""


class Relation(msgspec.Struct, frozen=True):
    """A reference from one part to another: its type without namespace, and the target's name."""

    kind: str
    target: str


class Package:
    """The ZIP archive of an open workbook. Its methods raise the exceptions in `BROKEN`."""

    def __init__(self, file: BinaryIO) -> None:
        with _damage():
            self._archive = zipfile.ZipFile(file)
        parts = self._archive.infolist()
        if len(parts) > _MOST_PARTS:
            raise BrokenPart(f"{len(parts)} parts are too many")
        self._parts: dict[str, zipfile.ZipInfo] = {}
        for part in parts:
            self._parts.setdefault(_folded(part.filename), part)
            self._parts[part.filename] = part

    def find(self, target: str, *others: str) -> str | None:
        """The name of the first of these parts that exists, or None."""
        for name in (target, *others):
            if name in self._parts:
                return name
            if (folded := _folded(name)) in self._parts:
                return self._parts[folded].filename
        return None

    def size(self, name: str) -> int:
        """The declared unpacked size of a part in bytes; zipfile yields no more."""
        return self._parts[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """Open an existing part, for reading in pieces."""
        part = self._parts[name]
        if part.file_size > max(_ALWAYS, _RATIO * part.compress_size):
            raise BrokenPart(f"unpacks to {part.file_size} bytes, from {part.compress_size}")
        with _damage():
            return self._archive.open(part)

    def relations(self, part: str) -> dict[str, Relation]:
        """The references of a part within the file, by id; the part "" is the whole file."""
        folder, name = posixpath.split(part)
        found = self.find(posixpath.join(folder, "_rels", f"{name}.rels"))
        handler = _Relations(folder)
        if found is not None:
            with self.open(found) as member:
                read_whole(member, handler, _LONGEST_RELATIONS)
        return handler.found


def cause(error: Exception) -> str:
    """A text for people that says what is wrong with a file that raised one of `BROKEN`."""
    match error:
        case BrokenPart():
            return str(error)
        case ExpatError():
            return f"broken XML ({ErrorString(error.code)})"
        case LookupError():
            return _NO_ENCODING
        case ValueError() if "multi-byte" in str(error):  # expat, of GBK or Shift JIS
            return _NO_ENCODING
        case NotImplementedError():
            return "it is packed in a way that is not known"
        case RuntimeError():
            return "it needs a password"
        case _:
            return "it is damaged"


@contextmanager
def _damage() -> Iterator[None]:
    """Raise BadZipFile for a seek before the start of the file: the archive is at fault."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("a place that no file has") from error


def _folded(name: str) -> str:
    return unquote(name).replace("\\", "/").removeprefix("/").casefold()


class _Relations(Handler):
    def __init__(self, folder: str) -> None:
        self.found: dict[str, Relation] = {}
        self._folder = folder

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag != "Relationship" or attributes.get("TargetMode") == "External":
            return
        if len(self.found) >= _MOST_RELATIONS:
            raise BrokenPart(f"more than {_MOST_RELATIONS} relations")
        kind = attributes.get("Type", "").rpartition("/")[2]
        target = attributes.get("Target", "").replace("\\", "/")
        target = posixpath.normpath(posixpath.join("/", self._folder, target)).lstrip("/")
        self.found[attributes.get("Id", "")] = Relation(kind, target)
