"""The format of the embedded broker's database: tables, version, migration of an old format."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path

import msgspec

from worker.brokers.embedded.batches import NOTHING, StoredBatch, insert
from worker.brokers.embedded.seal import seal, seal_batch
from worker.errors import StateError

APPLICATION_ID = 0x42756479  # "Budy": `file` and this program recognise the database by it
FORMAT = 3

_SCHEMA = """
-- topics: raised with every topic that is made or removed. The rest: clock.py.
CREATE TABLE log (
    id INTEGER PRIMARY KEY CHECK (id = 0),
    topics INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL DEFAULT '',
    uptime INTEGER NOT NULL DEFAULT 0,
    wall INTEGER NOT NULL DEFAULT 0,
    clock_crc INTEGER NOT NULL DEFAULT -1
);
INSERT INTO log (id) VALUES (0);
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    append_time INTEGER NOT NULL,
    retention_ms INTEGER,
    delete_retention_ms INTEGER NOT NULL,
    max_message_bytes INTEGER NOT NULL,
    identity TEXT NOT NULL,
    crc INTEGER NOT NULL
);
-- start: the first offset that has not expired. next: the one that comes next, never reused.
-- compacted_to: below it each key stands once. kept, grown: bytes below and above it.
-- tombstones_from: compaction has removed no tombstone at or above it because of its age.
-- crc: of the columns before it. The others only say when compaction is worth it.
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL,
    next INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    compacted_to INTEGER NOT NULL,
    tombstones_from INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    compacted_at INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0,
    grown INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
-- The messages of the offsets from base up to next. content is what log.py encodes.
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    base INTEGER NOT NULL,
    next INTEGER NOT NULL,
    time INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    content BLOB NOT NULL,
    crc INTEGER NOT NULL DEFAULT -1
);
CREATE UNIQUE INDEX IF NOT EXISTS batches_by_offset ON batches (partition, base);
-- What was found to be damaged, and whether readers go on behind it.
CREATE TABLE damage (
    partition INTEGER NOT NULL,
    base INTEGER NOT NULL,
    next INTEGER NOT NULL,
    reason TEXT NOT NULL,
    skipped INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (partition, base)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS committers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE group_offsets (
    consumer_group TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE
);
"""


def is_new(connection: sqlite3.Connection) -> bool:
    """Whether the database is empty, so that `make` may create its tables."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return _marks(connection) == (0, 0) and tables == 0


def make(connection: sqlite3.Connection) -> None:
    """Create the missing tables, within a transaction."""
    for statement in _SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={FORMAT}")


def is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database has the current format; if not, `migrate` upgrades it.

    Raises `StateError` if the database is not ours or its format is unknown.
    """
    owner, version = _marks(connection)
    if owner != APPLICATION_ID:
        raise StateError(f"{path} is not a log of this program: name another directory.")
    if version not in {1, 2, FORMAT}:
        raise StateError(
            f"{path} has format {version}, this program reads {FORMAT}: use the release that "
            f"wrote it, or move the directory away and send the records again."
        )
    return version == FORMAT


def migrate(connection: sqlite3.Connection) -> None:
    """Upgrade a log of format 1 or 2, within a transaction: a crash leaves the log unchanged.

    Earlier formats do not tell which tombstones compaction has removed: any below the offset up to
    which it had finished.
    """
    connection.create_function("seal", -1, seal)
    if _marks(connection)[1] == 1:
        _migrate_1(connection)
    else:
        _migrate_2(connection)


def _migrate_2(connection: sqlite3.Connection) -> None:
    # A row that is damaged gets no new checksum: it stays damaged. With columns of other names, an
    # old release that still runs cannot write to the table.
    for statement in _MIGRATION_2.split(";"):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={FORMAT}")


_MIGRATION_2 = """
ALTER TABLE partitions RENAME COLUMN cleaned TO compacted_to;
ALTER TABLE partitions RENAME COLUMN cleaned_at TO compacted_at;
ALTER TABLE partitions ADD COLUMN tombstones_from INTEGER NOT NULL DEFAULT 0;
UPDATE partitions SET tombstones_from = compacted_to,
    crc = seal(id, topic, number, start, next, last_time, compacted_to, compacted_to)
    WHERE crc = seal(id, topic, number, start, next, last_time, compacted_to)
"""


def _migrate_1(connection: sqlite3.Connection) -> None:
    """Rows of format 1 have no checksum. Each gets one, except batches that cannot be decoded."""
    for table in _COPIED:
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    # The large table is altered, not copied. After that, an old release that still runs cannot
    # write to it.
    connection.execute("ALTER TABLE batches RENAME COLUMN entries TO content")
    connection.execute("ALTER TABLE batches ADD COLUMN crc INTEGER NOT NULL DEFAULT -1")
    make(connection)
    connection.create_function("seal_old", 6, _seal_old)
    connection.create_function("identity", 0, lambda: uuid.uuid4().hex)
    for statement in _MIGRATION_1.split(";"):
        connection.execute(statement)
    for table in _COPIED:
        connection.execute(f"DROP TABLE old_{table}")
    _fill_gaps(connection)


_COPIED = ("topics", "partitions", "group_offsets")
_MIGRATION_1 = """
INSERT INTO topics SELECT *, 0 FROM (SELECT *, identity() FROM old_topics);
UPDATE topics SET crc = seal(id, name, partitions, compacted, append_time, retention_ms,
    delete_retention_ms, max_message_bytes, identity);
INSERT INTO partitions SELECT id, topic, number, start, next, last_time, cleaned, cleaned,
    seal(id, topic, number, start, next, last_time, cleaned, cleaned), cleaned_at, kept, grown
    FROM old_partitions;
INSERT INTO group_offsets SELECT *, seal(consumer_group, partition, position)
    FROM old_group_offsets;
UPDATE batches SET crc = seal_old(partition, base, next, time, last_time, content)
"""


def _fill_gaps(connection: sqlite3.Connection) -> None:
    """Insert empty batches where compaction left gaps, which format 2 and later do not allow."""
    partitions = connection.execute(
        "SELECT partitions.id, start, next FROM partitions"
        " JOIN topics ON topics.id = topic WHERE compacted"
    ).fetchall()
    for partition, start, end in partitions:
        position, gaps = start, []
        for base, after in connection.execute(
            "SELECT base, next FROM batches WHERE partition = ? ORDER BY base", (partition,)
        ):
            if base > position:
                gaps.append((position, base))
            position = after
        if end > position:
            gaps.append((position, end))
        for base, after in gaps:
            insert(connection, partition, StoredBatch(base, after, 0, 0, NOTHING))


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    return owner, connection.execute("PRAGMA user_version").fetchone()[0]


def _seal_old(*row: object) -> int:
    *place, content = row
    try:
        assert isinstance(content, bytes)
        msgspec.msgpack.decode(content)
    except (msgspec.MsgspecError, AssertionError):
        return -1
    return seal_batch(tuple(place), content)
