"""Checksums of the embedded broker's rows: a row is trusted only if its seal matches.

A seal is the CRC-32 of a row's content, its place included. So it detects a changed byte, and also
a row that the database returns in place of another.
"""

from __future__ import annotations

import sqlite3
from typing import Final
from zlib import crc32

import msgspec

_encode = msgspec.msgpack.Encoder().encode

_DAMAGE: Final = {
    0,  # from Python's sqlite3 module: text that is not UTF-8
    sqlite3.SQLITE_ERROR,  # our statements are valid, so the schema is damaged
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_TOOBIG,
}
_UNREADABLE: Final = {
    sqlite3.SQLITE_IOERR_CORRUPTFS,
    sqlite3.SQLITE_IOERR_DATA,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
}


def seal(*values: object) -> int:
    """The checksum of a row of numbers and texts; damaged columns may hold any type."""
    return crc32(_encode(values))


def seal_batch(place: tuple[object, ...], entries: object) -> int:
    """The checksum of a batch at (partition, base, next, time, last time).

    -1 stands for entries that are not bytes; no batch of bytes has this checksum.
    """
    return crc32(entries, crc32(_encode(place))) if isinstance(entries, bytes) else -1


def reason_of(error: sqlite3.Error) -> str:
    """The text of an SQLite error, unless it might quote the content of a message."""
    return str(error) if hasattr(error, "sqlite_errorcode") else "a column is not of its type"


def means_damage(error: sqlite3.Error) -> bool:
    """Whether an SQLite error means that the file is damaged where it was read.

    SQLite says the same of a file whose disk fails: see `disk.is_damage`.
    """
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return False  # a bug of this program
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGE or code in _UNREADABLE
