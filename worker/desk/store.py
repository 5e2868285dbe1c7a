"""The desk's store: where each rejection lies, what became of it, and counts by time.

SQLite, in a directory of its own. Promises:

* Rejections, counts and positions change together in one transaction. After a kill -9 the store is
  as it was after some call of `apply`, and reading on from its positions gives the same store.
* A rejection counts once: messages below the stored position are skipped.
* The bytes of records stay in the topics. The store has coordinates, codes, fields, and digests of
  keys.
* One process at a time writes. A second one gets `StateError`, unless it opens the store read-only.

A power cut may take the last transactions: they are read again. The topics can rebuild everything
here, so a store that cannot be used is emptied, with one log line (`desk_rebuilt`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from worker.core.topics import Names
from worker.core.unknown import MOST_NAMED
from worker.desk.buckets import WIDTHS_MS
from worker.desk.database import VERSION, DeskDatabase
from worker.desk.seen import RejectionSeen, Settling, key_digest
from worker.desk.verdicts import verdict_counts
from worker.index.freshness import SavedIndex
from worker.index.tails import Tail
from worker.stream import Partition

OPEN, ACCEPTED, DELETED, REPLAYED = range(4)
"""What became of a rejection: nothing yet, or its key was accepted or deleted since, or its record
was sent again, whatever else."""
STATES: Final = ("open", "accepted", "deleted", "replayed")

_MOST_PRODUCERS: Final = 1_000
_MOST_KINDS: Final = 100_000
"""Senders choose both, so their number is bounded: what comes later is counted as `OTHERS`."""
OTHERS: Final = "(others)"
MOST_REJECTIONS: Final = 20_000_000
"""Some 2 GB. Topics keep rejections for 30 days; this holds where one keeps them for longer."""
_AT_ONCE: Final = 500
"""Number of keys in one query."""
_SKEW_MS: Final = 60_000
"""How far the clocks of a cluster's brokers may differ. An audit that is older than the rejection
by more belongs to an earlier topic of the name."""
_REMOVED_AT_ONCE: Final = 20_000
_COUNTED_MS: Final = 3_600_000
"""What is older when it is read says nothing about now: accepted topics are compacted."""
_TOMBSTONES: Final = "tombstones"

_REJECTION: Final = "INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT: Final = (
    "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET records = records + excluded.records,"
    " open = open + excluded.open, first = min(first, excluded.first),"
    " last = max(last, excluded.last)"
)
_VERDICTS: Final = (
    "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " others = others + excluded.others, found = found + excluded.found"
)


_log = structlog.get_logger(__name__)


class Numbered(NamedTuple):
    """A rejection and its coordinate in a topic of rejections."""

    partition: Partition
    offset: int
    seen: RejectionSeen


class Replayed(NamedTuple):
    """A rejection whose record was sent again: the digest of its key, and its coordinate.

    `at` is when the broker appended the audit, in milliseconds since 1970.
    """

    key: int | None
    partition: Partition
    offset: int
    at: int


class _Row(NamedTuple):
    id: int | None
    at: int
    key: int | None
    kinds: int
    topic_partition: int
    offset: int
    source_partition: int
    source_offset: int
    producer: int
    state: int
    cause: int | None
    cause_kinds: int


class RejectionStore:
    """The rejections of one prefix. Its calls block; one at a time, from any thread."""

    def __init__(self, directory: Path, names: Names, *, read_only: bool = False) -> None:
        """Open or create the store. Raises `StateError`.

        With `read_only`, read the store that another process has open and keeps up to date.
        """
        self.names = names
        self.replayed = 0
        """How many audits of replays were applied since the opening."""
        self.clock: Callable[[], int] | None = None
        """The time in ms, if verdicts are to be counted for `worker.desk.incidents`."""
        self.is_live = False
        """Whether what is read was written a moment ago: nothing older is left to be read."""
        self.skew = 0
        """By how many ms the broker's clock is ahead of ours, as live messages tell."""
        self.database = DeskDatabase(directory, names.prefix, self._load, read_only=read_only)
        """The tables; `queries` reads them."""

    def close(self) -> None:
        """Release the directory."""
        self.database.close()

    # --- what it holds ------------------------------------------------------------------------

    def saved(self) -> SavedIndex:
        """Positions, identities and tails, for the rules of `worker.index.freshness`."""
        with self.database.guard():
            rows = self.database.execute("SELECT topic, number, position, tail FROM partitions")
            positions: dict[Partition, int] = {}
            tails: dict[Partition, Tail] = {}
            for topic, number, position, tail in rows:
                partition = Partition(topic, number)
                positions[partition] = position
                if tail is not None:
                    tails[partition] = Tail.decode(tail)
            identities = dict(self.database.execute("SELECT topic, identity FROM topics"))
            facts = self.database.execute("SELECT value FROM facts WHERE name = ?", (_TOMBSTONES,))
            noted = [json.loads(value) for (value,) in facts]
        tombstones = {Partition(topic, n): to for one in noted for topic, n, to in one}
        return SavedIndex(VERSION, None, positions, identities, tails, tombstones=tombstones)

    # --- what changes it ----------------------------------------------------------------------

    def apply(
        self,
        rejections: Sequence[Numbered],
        settlings: Sequence[Settling],
        positions: Mapping[Partition, int],
        identities: Mapping[str, str],
        tails: Mapping[Partition, Tail],
        replayed: Sequence[Replayed] = (),
    ) -> None:
        """Add rejections, then settle those whose key was accepted or deleted since.

        `replayed` are the rejections whose records were sent again. What a record refers to comes
        before the record. `positions` has the next offset of every
        partition that is followed. All of it is written, or nothing. Raises `StateError`.
        """
        with self.database.guard(), self.database.transaction():
            for partition, position in positions.items():
                self.database.execute(
                    "INSERT INTO partitions (topic, number, position) VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET position = excluded.position",
                    (*partition, position),
                )
            for partition, tail in tails.items():
                self.database.execute(
                    "UPDATE partitions SET tail = ? WHERE topic = ? AND number = ?",
                    (tail.encode(), *partition),
                )
            self.database.executemany(
                "INSERT OR REPLACE INTO topics VALUES (?, ?)", identities.items()
            )
            self._add(rejections)
            self._note_unknown([seen for _, _, seen in rejections])
            self._settle(settlings)
            self._note_unknown(settlings)
            self._replay(replayed)
            if self.clock is not None:
                self._count_verdicts(self.clock(), rejections, settlings)
        self.replayed += len(replayed)

    def expire(self, starts: Mapping[Partition, int], most: int = MOST_REJECTIONS) -> int:
        """Remove rejections that their topics no longer have, with their counts.

        `starts` has the start of each partition of rejections. Of more than `most` rejections the
        oldest are removed as well. Returns how many were removed. Raises `StateError`.
        """
        removed = 0
        with self.database.guard():
            for partition, start in starts.items():
                known = self.database.execute(
                    "SELECT id FROM partitions WHERE topic = ? AND number = ? AND start < ?",
                    (*partition, start),
                ).fetchone()
                if known is not None:
                    removed += self._remove('topic_partition = ? AND "offset" < ?', (*known, start))
                    with self.database.transaction():
                        self.database.execute(
                            "UPDATE partitions SET start = ? WHERE id = ?", (start, *known)
                        )
            (there,) = self.database.execute(
                "SELECT coalesce(sum(records), 0) FROM counts WHERE level = ?",
                (len(WIDTHS_MS) - 1,),
            ).fetchone()
            if there > most:
                _log.warning("desk_full", removed=there - most)
                limit = self.database.execute(
                    "SELECT id FROM rejections ORDER BY id LIMIT 1 OFFSET ?", (there - most,)
                ).fetchone()
                removed += self._remove("id < ?", limit)
            if removed:
                with self.database.transaction():
                    self.database.execute("DELETE FROM counts WHERE records = 0")
        return removed

    def note_tombstones(self, tombstones: Mapping[Partition, int]) -> None:
        """Save `SavedIndex.tombstones`, once the store is found to be complete, or is empty.

        Raises `StateError`.
        """
        value = json.dumps([(*partition, to) for partition, to in tombstones.items()])
        with self.database.guard(), self.database.transaction():
            self.database.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", (_TOMBSTONES, value)
            )

    def wipe(self, reason: str) -> None:
        """Empty the store, to be filled again from the topics. Raises `StateError`."""
        self.database.replace(reason)

    # --- inside -------------------------------------------------------------------------------

    def _remove(self, where: str, values: tuple[int, ...]) -> int:
        """Remove rejections and their counts, some at a time. Returns how many."""
        some = f"SELECT id FROM rejections WHERE {where} LIMIT {_REMOVED_AT_ONCE}"
        removed = 0
        while True:
            with self.database.transaction():
                rows = self.database.execute(
                    f"DELETE FROM rejections WHERE id IN ({some}) RETURNING *",
                    values,
                )
                gone = list(map(_Row._make, rows))
                self._count((row, -1, -1 if row.state == OPEN else 0) for row in gone)
            if not gone:
                return removed
            removed += len(gone)

    def _add(self, rejections: Sequence[Numbered]) -> None:
        numbers = {
            Partition(topic, number): id_
            for id_, topic, number in self.database.execute(
                "SELECT id, topic, number FROM partitions"
            )
        }
        rows: list[_Row] = []
        for partition, offset, seen in rejections:
            cause = self._cause(seen)
            row = _Row(
                None,
                seen.at,
                None if seen.key is None else key_digest(seen.entity, seen.key),
                self._kinds(seen),
                numbers[partition],
                offset,
                seen.source.partition,
                seen.source.offset,
                self._producer(seen.producer),
                OPEN,
                None if cause is None else cause.id,
                0 if cause is None else cause.kinds,
            )
            self.database.execute(_REJECTION, row)
            rows.append(row)
        self._count((row, 1, 1) for row in rows)

    def _note_unknown(self, records: Sequence[RejectionSeen | Settling]) -> None:
        """Count the names of fields that have no column, at most 50 of an entity."""
        counts: Counter[tuple[str, str]] = Counter()
        first: dict[tuple[str, str], int] = {}
        for record in records:
            for name in record.unknown_names:
                names = self._unknown.setdefault(record.entity, set())
                if name in names or len(names) < MOST_NAMED:
                    names.add(name)
                    counts[record.entity, name] += 1
                    first.setdefault((record.entity, name), record.at)
        self.database.executemany(
            "INSERT INTO unknown_fields VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET records = records + excluded.records",
            [(*name, count, first[name]) for name, count in counts.items()],
        )

    def _cause(self, seen: RejectionSeen) -> _Row | None:
        """The latest earlier rejection of a key that a record refers to and that was missing."""
        for key in seen.wanted:
            row = self.database.execute(
                "SELECT * FROM rejections WHERE key = ? ORDER BY at <= ? DESC, id DESC LIMIT 1",
                (key, seen.at),
            ).fetchone()
            if row is not None:
                return _Row._make(row)
        return None

    def _settle(self, settlings: Sequence[Settling]) -> None:
        by_key: dict[int, list[Settling]] = {}
        for settling in settlings:
            by_key.setdefault(settling.key, []).append(settling)
        keys = list(by_key)
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self.database.execute(
                f"SELECT * FROM rejections WHERE key IN ({marks}) AND state = {OPEN}",
                some,
            )
            settled: list[tuple[_Row, Settling]] = []
            for row in map(_Row._make, rows):
                since = [s for s in by_key[row.key or 0] if _is_since(s, row)]
                settled += [(row, each) for each in since[-1:]]
            self._count((row, 0, -1) for row, _ in settled)
            self.database.executemany(
                "UPDATE rejections SET state = ? WHERE id = ?",
                [(DELETED if by.deleted else ACCEPTED, row.id) for row, by in settled],
            )

    def _replay(self, replayed: Sequence[Replayed]) -> None:
        found: list[_Row] = []
        for first in range(0, len(replayed), _AT_ONCE):
            some = {(*r.partition, r.offset): r for r in replayed[first : first + _AT_ONCE]}
            keys = {each.key for each in some.values()} - {None}
            offsets = {each.offset for each in some.values() if each.key is None}
            rows = self.database.execute(
                "SELECT p.topic, p.number, r.* FROM rejections r"
                " JOIN partitions p ON p.id = r.topic_partition"
                f" WHERE r.state != {REPLAYED} AND (r.key IN ({_marks(keys)})"
                f' OR (r.key IS NULL AND r."offset" IN ({_marks(offsets)})))',
                (*keys, *offsets),
            )
            for topic, number, *columns in rows.fetchall():
                row = _Row._make(columns)
                audit = some.get((topic, number, row.offset))
                if audit is not None and audit.key == row.key and row.at <= audit.at + _SKEW_MS:
                    found.append(row)
        self._count((row, 0, -1) for row in found if row.state == OPEN)
        self.database.executemany(
            f"UPDATE rejections SET state = {REPLAYED} WHERE id = ?", [(row.id,) for row in found]
        )

    def _count(self, changes: Iterable[tuple[_Row, int, int]]) -> None:
        """Add to the counts of rejections, and of open ones, at every level."""
        sums: dict[tuple[int, ...], list[int]] = {}
        for row, records, open_ in changes:
            for level, width in enumerate(WIDTHS_MS):
                bucket = (
                    level,
                    row.at // width,
                    row.kinds,
                    row.source_partition,
                    row.producer,
                    row.cause_kinds,
                )
                at = row.at % width // 1000
                found = sums.setdefault(bucket, [0, 0, at, at])
                found[0] += records
                found[1] += open_
                found[2] = min(found[2], at)
                found[3] = max(found[3], at)
        self.database.executemany(_COUNT, [(*bucket, *found) for bucket, found in sums.items()])

    def _count_verdicts(
        self, now: int, rejections: Sequence[Numbered], settlings: Sequence[Settling]
    ) -> None:
        """Count those of the last hour. A broker's clock that is ahead counts as now."""
        times = [seen.at for _, _, seen in rejections] + [row.at for row in settlings]
        if self.is_live and times:
            self.skew = max(times) - now
        since = now + min(0, self.skew) - _COUNTED_MS
        found = [seen for _, _, seen in rejections]
        self.database.executemany(_VERDICTS, verdict_counts(found, settlings, since, now))

    def _kinds(self, seen: RejectionSeen) -> int:
        kinds = seen.entity, json.dumps(seen.kinds)
        if kinds not in self._kind_numbers and len(self._kind_numbers) >= _MOST_KINDS:
            kinds = seen.entity, json.dumps(((OTHERS, ""),))
        if (number := self._kind_numbers.get(kinds)) is None:
            number = self._kind_numbers[kinds] = self._insert(
                "INSERT INTO kinds (entity, violations) VALUES (?, ?)", kinds
            )
        return number

    def _producer(self, name: str) -> int:
        if name not in self._producer_numbers and len(self._producer_numbers) >= _MOST_PRODUCERS:
            name = OTHERS
        if (number := self._producer_numbers.get(name)) is None:
            number = self._producer_numbers[name] = self._insert(
                "INSERT INTO producers (name) VALUES (?)", (name,)
            )
        return number

    def _insert(self, statement: str, values: Sequence[str]) -> int:
        number = self.database.execute(statement, values).lastrowid
        assert number is not None
        return number

    def _load(self, db: DeskDatabase) -> None:
        self._kind_numbers: dict[tuple[str, str], int] = {
            (entity, violations): number
            for number, entity, violations in db.execute("SELECT * FROM kinds")
        }
        self._producer_numbers: dict[str, int] = {
            name: number for number, name in db.execute("SELECT * FROM producers")
        }
        self._unknown: dict[str, set[str]] = {}
        for entity, name in db.execute("SELECT entity, name FROM unknown_fields"):
            self._unknown.setdefault(entity, set()).add(name)


def _marks(values: Collection[object]) -> str:
    return ",".join("?" * len(values))


def _is_since(settling: Settling, row: _Row) -> bool:
    """Whether a row or deletion was accepted after the rejection of its key.

    Records of one key and input partition are judged in order: of one millisecond, the later
    offset is the later one.
    """
    if settling.at == row.at:
        same = settling.partition == row.source_partition
        return same and settling.offset > row.source_offset
    return settling.at > row.at
