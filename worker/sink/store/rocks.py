"""RocksDB as the sink uses it: its options, and its errors as one line for a person.

rocksdict raises plain `Exception` with RocksDB's text. No other module parses that text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteOptions,
)

from worker.errors import BuddyError, StateError, StateLost
from worker.exports.places.links import check_no_link
from worker.private import make_private

_MIB: Final = 1024 * 1024
_FULL: Final = ("no space left", "file too large", "disk quota")
_REFUSED: Final = ("permission denied", "read-only file system", "operation not permitted")
_NO_DIRECTORY: Final = ("file exists", "not a directory", "no such file")
_DAMAGED: Final = ("corruption", "no such file")
_UNREADABLE: Final = (*_DAMAGED, "invalid argument", "while opening a file", "does not exist")
"""Signs of damage when a database is opened."""


def open_database(directory: Path) -> Rdict:
    """Open or create the database. Raises `StateError`, or `StateLost` if it is damaged.

    A symbolic link in the place of one of its files is refused.
    """
    for path in directory.glob("*"):  # RocksDB writes through links
        check_no_link(path)
    if not (directory / "CURRENT").exists() and any(directory.glob("*.sst")):
        # RocksDB would silently create an empty database beside the old files.
        raise StateLost(damage(directory, "its file CURRENT is missing"))
    try:
        return Rdict(str(directory), _options())
    except Exception as error:  # noqa: BLE001 -- rocksdict raises nothing more precise
        if _has(str(error), _UNREADABLE) and not _has(str(error), (*_REFUSED, *_FULL)):
            raise StateLost(damage(directory, str(error))) from None
        raise StateError(in_one_line(directory, error)) from None


def freeze(db: Rdict, room: Path) -> Rdict:
    """The current database, opened a second time, read-only, from hard links in `room`.

    A RocksDB checkpoint provides the view. rocksdict's own `Snapshot` does not: its scans show
    later writes (0.3.29), and only its look-ups respect the snapshot. Raises whatever RocksDB
    raises; see `guard`.
    """
    Checkpoint(db).create_checkpoint(str(room))
    return Rdict(str(room), _options(), access_type=AccessType.read_only())


def close(db: Rdict) -> None:
    """Close the database and ignore errors: the topics hold all that could not be written."""
    with suppress(Exception):
        db.close()


def destroy(directory: Path) -> None:
    """Remove the database's files. RocksDB's own `destroy` fails on a damaged database.

    Raises `StateError`, also for a symbolic link in its place.
    """
    check_no_link(directory)
    try:
        for path in directory.iterdir():
            if path.is_file():
                path.unlink()
    except FileNotFoundError:
        return  # already removed
    except OSError as error:
        raise StateError(in_one_line(directory, error)) from None


def make_directory(directory: Path) -> None:
    """Make a directory that only owner and group can read. Raises `StateError`."""
    try:
        make_private(directory)
        obstacle = None if directory.is_dir() else directory
    except FileExistsError as error:  # a link to nothing, also above
        obstacle = Path(error.filename)
    except OSError as error:
        raise StateError(in_one_line(directory, error)) from None
    if obstacle is not None:
        raise StateError(f"{obstacle} is in the way of a directory: move it away")


def make_room(directory: Path) -> None:
    """Make a directory below the store's, whose content may be removed. Raises `StateError`.

    A symbolic link there may lead to files of others, which RocksDB itself would remove as well.
    """
    check_no_link(directory)
    make_directory(directory)


@contextmanager
def guard(directory: Path) -> Iterator[None]:
    """Turn any RocksDB error into `StateError`, or `StateLost` if the error means damage.

    RocksDB verifies the checksum of each block that it reads.
    """
    try:
        yield
    except BuddyError:
        raise
    except Exception as error:  # noqa: BLE001 -- rocksdict raises nothing more precise
        if _has(str(error), _DAMAGED):
            raise StateLost(damage(directory, str(error))) from None
        raise StateError(in_one_line(directory, error)) from None


def damage(directory: Path, what: str) -> str:
    """One line for a person about a damaged database."""
    return f"{directory} is damaged ({' '.join(what.split())[:200]}): it is rebuilt"


def in_one_line(directory: Path, error: Exception) -> str:
    """One line for a person: what is wrong with the directory, and what to do."""
    text = str(error).replace("\n", " ")
    small = text.lower()
    if "lock hold by" in small or "while lock file" in small:
        return (
            f"{directory} is in use by another sink: stop that one, "
            "or give this one a directory of its own"
        )
    if any(sign in small for sign in _FULL):
        return f"{directory} cannot be written, the disk is full: free some space"
    if any(sign in small for sign in _REFUSED):
        refused = _named(directory, text)
        return f"{refused} cannot be read or written: check its owner and rights"
    if any(sign in small for sign in _NO_DIRECTORY):
        return f"{directory} cannot be used as a directory: name another one"
    return f"{directory} cannot be used: {text[:200]}"


def _named(directory: Path, text: str) -> Path:
    """The path below `directory` that RocksDB's text names; above it, what is there."""
    found = re.search(rf"{re.escape(str(directory))}/[^:\s]+", text)
    path = directory if found is None else Path(found.group())
    while path != directory and not os.path.lexists(path):
        path = path.parent
    return path


def until(end: bytes) -> ReadOptions:
    """Options of a scan that ends before `end` and does not fill the cache, which look-ups need."""
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    options.set_readahead_size(2 * _MIB)
    options.fill_cache(False)  # type: ignore[call-arg]  # noqa: FBT003 -- the stub forgot it
    return options


def flushed() -> WriteOptions:
    """Options of a write that returns once it and all earlier writes are on disk."""
    options = WriteOptions()
    options.sync = True
    return options


def after(prefix: bytes) -> bytes:
    """The first key after all keys that begin with `prefix`, which must not end in 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _has(text: str, signs: tuple[str, ...]) -> bool:
    small = text.lower()
    return any(sign in small for sign in signs)


def _options() -> Options:
    """Options that bound memory at any store size, to three write buffers and the block cache.

    Bloom filters pay off: most rows are new while a store is being filled. Blocks of 16 KiB scan
    well and still serve single look-ups from the cache.
    """
    table = BlockBasedOptions()
    table.set_bloom_filter(10, block_based=False)
    table.set_block_cache(Cache(32 * _MIB))
    table.set_block_size(16 * 1024)
    options = Options(raw_mode=True)
    options.create_if_missing(create_if_missing=True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(16 * _MIB)
    options.set_max_write_buffer_number(3)
    options.set_max_background_jobs(2)
    # RocksDB opens files in 16 threads of the moment, and aborts the process where the system
    # refuses one: a snapshot is opened for each export. One thread is the one that opens.
    options.set_max_file_opening_threads(1)
    options.set_bytes_per_sync(_MIB)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    return options
