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
-- cleaned: below it each key stands once. kept, grown: bytes below and above it.
-- crc: of the columns before it. The others only say when compaction is worth it.
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL,
    next INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    cleaned INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    cleaned_at INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0,
    grown INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
-- The messages of the offsets from base up to next. content is what log.py encodes.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    base INTEGER NOT NULL,
    next INTEGER NOT NULL,
    time INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    content BLOB NOT NULL,
    crc INTEGER NOT NULL DEFAULT -1
);
CREATE UNIQUE INDEX batches_by_offset ON batches (partition, base);
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
CREATE TABLE committers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE group_offsets (
    consumer_group TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) WITHOUT ROWID;
CREATE TABLE members (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE
);
PRAGMA application_id = 1114989689;
PRAGMA user_version = 2;
