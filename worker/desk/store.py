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
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from worker.core.topics import Names
from worker.core.unknown import MOST_NAMED
from worker.desk.counts import ACCEPTED, DELETED, OPEN, REPLAYED, RejectionRow, add_counts
from worker.desk.database import VERSION, DeskDatabase
from worker.desk.seen import RejectionSeen, Settling, key_digest
from worker.desk.verdicts import verdict_counts
from worker.index.freshness import SavedIndex
from worker.index.tails import Tail
from worker.stream import Partition

_MOST_PRODUCERS: Final = 1_000
_MOST_KINDS: Final = 100_000
"""Senders choose both, so their number is bounded: what comes later is counted as `OTHERS`."""
OTHERS: Final = "(others)"
_AT_ONCE: Final = 500
"""Number of keys in one query."""
_SKEW_MS: Final = 60_000
"""How far the clocks of a cluster's brokers may differ. An audit that is older than the rejection
by more belongs to an earlier topic of the name."""
_COUNTED_MS: Final = 3_600_000
"""What is older when it is read says nothing about now: accepted topics are compacted."""
_TOMBSTONES: Final = "tombstones"
_DAMAGE: Final = "damage"

_REJECTION: Final = "INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_VERDICTS: Final = (
    "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " others = others + excluded.others, found = found + excluded.found"
)


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
            tombstones = {Partition(topic, n): to for topic, n, to in self._noted(_TOMBSTONES)}
        return SavedIndex(VERSION, None, positions, identities, tails, tombstones=tombstones)

    def damage(self) -> dict[Partition, str]:
        """The partitions that cannot be read on because of damage, with a line about each.

        Raises `StateError`.
        """
        with self.database.guard():
            return {Partition(topic, n): line for topic, n, line in self._noted(_DAMAGE)}

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

    def oldest(self) -> int | None:
        """The append time of the oldest rejection, in milliseconds; None if there is none."""
        at: int | None = self.database.rows("SELECT min(at) FROM rejections")[0][0]
        return at

    def note_tombstones(self, tombstones: Mapping[Partition, int]) -> None:
        """Save `SavedIndex.tombstones`, once the store is found to be complete, or is empty.

        Raises `StateError`.
        """
        self._note(_TOMBSTONES, tombstones)

    def note_damage(self, damage: Mapping[Partition, str]) -> None:
        """Save `damage`, before anything is read that should come behind it.

        Raises `StateError`.
        """
        self._note(_DAMAGE, damage)

    def wipe(self, reason: str) -> None:
        """Empty the store, to be filled again from the topics. Raises `StateError`."""
        self.is_live = False
        self.database.replace(reason)

    # --- inside -------------------------------------------------------------------------------

    def _noted(self, name: str) -> list[Any]:
        rows = self.database.rows("SELECT value FROM facts WHERE name = ?", (name,))
        return [noted for (value,) in rows for noted in json.loads(value)]

    def _note(self, name: str, values: Mapping[Partition, object]) -> None:
        text = json.dumps([(*partition, value) for partition, value in values.items()])
        with self.database.guard(), self.database.transaction():
            self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text))

    def _add(self, rejections: Sequence[Numbered]) -> None:
        numbers = {
            Partition(topic, number): id_
            for id_, topic, number in self.database.execute(
                "SELECT id, topic, number FROM partitions"
            )
        }
        rows: list[RejectionRow] = []
        for partition, offset, seen in rejections:
            cause = self._cause(seen)
            row = RejectionRow(
                None,
                seen.at,
                None if seen.key is None else key_digest(seen.entity, seen.key),
                self._number_of_kinds(seen),
                numbers[partition],
                offset,
                seen.source.partition,
                seen.source.offset,
                self._number_of_producer(seen.producer),
                OPEN,
                None if cause is None else cause.id,
                0 if cause is None else cause.kinds,
                seen.judged,
            )
            self.database.execute(_REJECTION, row)
            rows.append(row)
        add_counts(self.database, ((row, 1, 1) for row in rows))

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

    def _cause(self, seen: RejectionSeen) -> RejectionRow | None:
        """The latest earlier rejection of a key that a record refers to and that was missing."""
        for key in seen.wanted:
            row = self.database.execute(
                "SELECT * FROM rejections WHERE key = ? ORDER BY at <= ? DESC, id DESC LIMIT 1",
                (key, seen.at),
            ).fetchone()
            if row is not None:
                return RejectionRow._make(row)
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
            settled: list[tuple[RejectionRow, Settling]] = []
            for row in map(RejectionRow._make, rows):
                since = [s for s in by_key[row.key or 0] if _is_since(s, row)]
                settled += [(row, each) for each in since[-1:]]
            add_counts(self.database, ((row, 0, -1) for row, _ in settled))
            self.database.executemany(
                "UPDATE rejections SET state = ? WHERE id = ?",
                [(DELETED if by.deleted else ACCEPTED, row.id) for row, by in settled],
            )

    def _replay(self, replayed: Sequence[Replayed]) -> None:
        found: list[RejectionRow] = []
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
                row = RejectionRow._make(columns)
                audit = some.get((topic, number, row.offset))
                if audit is not None and audit.key == row.key and row.at <= audit.at + _SKEW_MS:
                    found.append(row)
        add_counts(self.database, ((row, 0, -1) for row in found if row.state == OPEN))
        self.database.executemany(
            f"UPDATE rejections SET state = {REPLAYED} WHERE id = ?", [(row.id,) for row in found]
        )

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

    def _number_of_kinds(self, seen: RejectionSeen) -> int:
        kinds = seen.entity, json.dumps(seen.kinds)
        if kinds not in self._kind_numbers and len(self._kind_numbers) >= _MOST_KINDS:
            kinds = seen.entity, json.dumps(((OTHERS, ""),))
        if (number := self._kind_numbers.get(kinds)) is None:
            number = self._kind_numbers[kinds] = self._insert(
                "INSERT INTO kinds (entity, violations) VALUES (?, ?)", kinds
            )
        return number

    def _number_of_producer(self, name: str) -> int:
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


def _is_since(settling: Settling, row: RejectionRow) -> bool:
    """Whether a row or deletion was accepted after the rejection of its key.

    A round judges the records of an input partition in order, and has one time. The broker appends
    what it has decided in any order: of one round, or one millisecond, the later offset is later.
    """
    if settling.partition == row.source_partition and (
        settling.judged == row.judged or settling.at == row.at
    ):
        return settling.offset > row.source_offset
    return settling.at > row.at
