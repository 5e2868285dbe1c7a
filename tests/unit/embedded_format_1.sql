CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    append_time INTEGER NOT NULL,
    retention_ms INTEGER,
    delete_retention_ms INTEGER NOT NULL,
    max_message_bytes INTEGER NOT NULL
);
-- start: the first offset that has not expired. next: the one that comes next, never reused.
-- cleaned: below it each key stands once. kept, grown: bytes below and above it.
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    last_time INTEGER NOT NULL DEFAULT 0,
    cleaned INTEGER NOT NULL DEFAULT 0,
    cleaned_at INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0,
    grown INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
-- The messages of the offsets from base up to next. entries is what embedded_log encodes.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    base INTEGER NOT NULL,
    next INTEGER NOT NULL,
    time INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    entries BLOB NOT NULL
);
CREATE UNIQUE INDEX batches_by_offset ON batches (partition, base);
CREATE TABLE committers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE group_offsets (
    consumer_group TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) WITHOUT ROWID;
CREATE TABLE members (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE
);
PRAGMA application_id = 1114989689;
PRAGMA user_version = 1;
