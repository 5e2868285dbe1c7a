"""Checksums of the embedded broker's rows: a row is believed only if its seal fits.

A seal is the CRC-32 of all that a row says, its place included. So neither a changed byte nor a row
that the database returns in another's place passes for the truth.
"""

from __future__ import annotations

import sqlite3
from typing import Final
from zlib import crc32

import msgspec

_encode = msgspec.msgpack.Encoder().encode

_DAMAGE: Final = {
    0,  # found by Python's module: text that is no UTF-8
    sqlite3.SQLITE_ERROR,  # our statements are right, so the schema is not
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
    """The checksum of a row of numbers and texts; damaged columns may hold anything."""
    return crc32(_encode(values))


def seal_batch(place: tuple[object, ...], entries: object) -> int:
    """The checksum of a batch at (partition, base, next, time, last time); -1 fits none."""
    return crc32(entries, crc32(_encode(place))) if isinstance(entries, bytes) else -1


def reason_of(error: sqlite3.Error) -> str:
    """What a failure of SQLite says, unless it might quote a message."""
    return str(error) if hasattr(error, "sqlite_errorcode") else "a column is not of its type"


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a failure of SQLite means that the file is damaged where it was read."""
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return False  # ours
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGE or code in _UNREADABLE
