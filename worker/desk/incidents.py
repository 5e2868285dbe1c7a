"""Incidents: far more of an entity is rejected than usual, or has unknown fields; what stands out.

The desk counts verdicts by entity and bucket of five seconds, in the same transaction as the
rejections. Each complete bucket is looked at once (`worker.desk.detection`). All state is in the
store, so an incident opens once and closes once, whoever is killed and when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from schemas import ENTITIES
from worker.desk import queries
from worker.desk.buckets import WIDTHS_MS, cover
from worker.desk.detection import (
    BUCKET_MS,
    Incident,
    IncidentClosed,
    IncidentOpened,
    Verdicts,
    Watch,
    advance,
)
from worker.desk.queries import Filter
from worker.desk.store import RejectionStore
from worker.desk.verdicts import REJECTIONS, UNKNOWN_FIELDS

_MINUTE_MS: Final = WIDTHS_MS[0]
_DAY_MS: Final = WIDTHS_MS[-1]
_EXAMPLES: Final = 3
_LATEST: Final = 20_000
"""How many rejections an incident looks at."""
_MOST: Final = 5
"""Values that stand out, of each kind."""
KEPT_MS: Final = 30 * _DAY_MS
"""How long closed incidents are kept."""

_EARLIER_MS: Final = 3 * BUCKET_MS
"""By how much the beginning of an incident may be missed."""
_AHEAD: Final = 2
"""In buckets."""

_OPENING, _CLOSING = 1, 2
"""What is untold of an incident."""

T = TypeVar("T")


class IncidentReport(msgspec.Struct, kw_only=True):
    """An incident, and what stands out in it. Times are in milliseconds since 1970."""

    id: int
    entity: str
    what: str
    """`REJECTIONS` or `UNKNOWN_FIELDS`."""
    since: int
    opened: int
    closed: int | None
    usual: float
    """The share of such records before."""
    share: float
    """The share of the last minute."""
    found: int
    """Such records since the incident began, of those `seen`."""
    seen: int
    names: list[str] = []
    """Unknown fields that came up with the incident; if there are none, the most frequent ones."""
    violations: list[tuple[str, str]] = []
    """Codes and fields that stand out, most frequent first."""
    producers: list[str] = []
    """Producers that stand out, of those that name themselves."""
    partitions: list[int] = []
    examples: list[str] = []
    """Coordinates of the newest such rejections."""


class _Subject(NamedTuple):
    """What an incident may be about."""

    entity: str
    what: str


_SUBJECTS: Final = [_Subject(e, what) for e in ENTITIES for what in (REJECTIONS, UNKNOWN_FIELDS)]


class _Frequencies(NamedTuple):
    """How many rejections have each kind of violation, producer and input partition."""

    kinds: Counter[tuple[str, str]]
    producers: Counter[str]
    partitions: Counter[int]


_encode = msgspec.json.encode
_watch = msgspec.json.Decoder(Watch).decode
_report = msgspec.json.Decoder(IncidentReport).decode


class IncidentBook:
    """The incidents in the store of one process. Its calls block."""

    def __init__(self, store: RejectionStore) -> None:
        self._store = store

    def detect(self, now: int, wall: int, *, tells: bool) -> list[IncidentReport]:
        """Look for incidents in all buckets that were complete at `now`; returns what changed.

        `wall` is what the wall clock says, for those who ask when the desk looked last.

        That is incidents that opened or closed. What comes late for a bucket that was looked at
        before counts in the next one. While damage hides verdicts of an entity, its share of
        rejections is unknown: its buckets wait. With `tells`, what is returned is `untold` until
        `told`. Raises StateError.
        """
        database = self._store.database
        end = now // BUCKET_MS
        changed: list[IncidentReport] = []
        unsure = {self._store.names.entity_of(p.topic) for p in self._store.damage()}
        with database.guard(), database.transaction():
            rows = database.execute("SELECT entity, what, watch FROM watches").fetchall()
            watches = {_Subject(entity, what): _watch(watch) for entity, what, watch in rows}
            for subject in _SUBJECTS:
                watch = watches.get(subject, Watch())
                if watch.bucket >= end + _AHEAD:  # the clock was wrong, and is right again
                    if watch.incident is not None:
                        over = IncidentClosed(watch.incident, end * BUCKET_MS)
                        changed.append(self._end(subject, over, tells=tells))
                    watch = Watch(end - 2, past=watch.past)
                    self._save(subject, watch)
                if watch.bucket < end - 1 and subject.entity not in unsure:
                    changed += self._detect(subject, watch, end, tells=tells)
            database.execute("INSERT OR REPLACE INTO facts VALUES ('looked', ?)", (str(wall),))
            database.execute(
                "DELETE FROM incidents WHERE closed < ? AND untold = 0", (now - KEPT_MS,)
            )
        return changed

    def looked(self) -> int | None:
        """When the desk looked last, in ms since 1970; None if never. Raises StateError."""
        with self._store.database.guard():
            found = self._store.database.rows("SELECT value FROM facts WHERE name = 'looked'")
            return int(found[0][0]) if found else None

    def reports(self, *, only_open: bool = False) -> list[IncidentReport]:
        """The incidents of the last 30 days, the newest first. Raises StateError."""
        where = "WHERE closed IS NULL" if only_open else ""
        database = self._store.database
        with database.guard():
            rows = database.rows(f"SELECT report FROM incidents {where} ORDER BY id DESC")
            return [_report(report) for (report,) in rows]

    def untold(self) -> list[IncidentReport]:
        """What is still to be sent, the oldest incident first: its opening, and its closing.

        Raises StateError.
        """
        found = []
        database = self._store.database
        with database.guard():
            for text, states in database.rows(
                "SELECT report, untold FROM incidents WHERE untold ORDER BY id"
            ):
                report = _report(text)
                if states & _OPENING:
                    found.append(msgspec.structs.replace(report, closed=None))
                if states & _CLOSING:
                    found.append(report)
        return found

    def told(self, report: IncidentReport) -> None:
        """This state of an incident was sent. Raises StateError."""
        database = self._store.database
        with database.guard(), database.transaction():
            self._told(report)

    def _told(self, report: IncidentReport) -> None:
        state = _OPENING if report.closed is None else _CLOSING
        self._store.database.execute(
            "UPDATE incidents SET untold = untold & ~?"
            " WHERE entity = ? AND what = ? AND opened = ?",
            (state, report.entity, report.what, report.opened),
        )

    def forget_untold(self) -> None:
        """Nobody is to be told of what was found until now. Raises StateError."""
        database = self._store.database
        with database.guard(), database.transaction():
            database.execute("UPDATE incidents SET untold = 0 WHERE untold")

    def _detect(
        self, subject: _Subject, watch: Watch, end: int, *, tells: bool
    ) -> list[IncidentReport]:
        counts = self._take_counts(subject, watch.bucket + 1, end)
        if not (counts or watch.window or watch.incident):
            return []
        counts.setdefault(end - 1, Verdicts(0, 0))
        changed = []
        for bucket in sorted(counts):
            watch, events = advance(watch, bucket, counts[bucket])
            changed += [
                self._write(subject, event.incident, event, tells=tells) for event in events
            ]
        if watch.incident is not None:
            self._write(subject, watch.incident)
        elif len(changed) > 1:  # over before anybody could be told: of a store that is new
            for report in changed:
                self._told(report)
        self._save(subject, watch)
        return changed

    def _save(self, subject: _Subject, watch: Watch) -> None:
        self._store.database.execute(
            "INSERT OR REPLACE INTO watches VALUES (?, ?, ?)", (*subject, _encode(watch))
        )

    def _take_counts(self, subject: _Subject, first: int, end: int) -> dict[int, Verdicts]:
        """Remove the counts of buckets before `end`; those before `first` came late."""
        found: dict[int, Verdicts] = {}
        for bucket, *counts in self._store.database.execute(
            "DELETE FROM verdicts WHERE entity = ? AND what = ? AND bucket < ?"
            " RETURNING bucket, others, found",
            (*subject, end),
        ):
            at = max(bucket, first)
            known = found.get(at, Verdicts(0, 0))
            found[at] = Verdicts(*(one + other for one, other in zip(known, counts, strict=True)))
        return found

    def _end(self, subject: _Subject, over: IncidentClosed, *, tells: bool) -> IncidentReport:
        """Close an incident as it was last reported: this clock cannot tell what stands out."""
        ((text,),) = self._store.database.rows(
            "SELECT report FROM incidents WHERE entity = ? AND what = ? AND opened = ?",
            (*subject, over.incident.opened),
        )
        report = msgspec.structs.replace(_report(text), closed=over.at)
        self._keep(report, over, tells=tells)
        return report

    def _keep(
        self,
        report: IncidentReport,
        event: IncidentOpened | IncidentClosed | None,
        *,
        tells: bool,
    ) -> None:
        self._store.database.execute(
            "UPDATE incidents SET closed = ?, report = ?, untold = untold | ? WHERE id = ?",
            (report.closed, _encode(report), _states(event) if tells else 0, report.id),
        )

    def _write(
        self,
        subject: _Subject,
        incident: Incident,
        event: IncidentOpened | IncidentClosed | None = None,
        *,
        tells: bool = False,
    ) -> IncidentReport:
        database = self._store.database
        closed = event.at if isinstance(event, IncidentClosed) else None
        ((number,),) = database.rows(
            "SELECT id FROM incidents WHERE entity = ? AND what = ? AND opened = ?",
            (*subject, incident.opened),
        ) or [(None,)]
        if number is None:
            number = database.execute(
                "INSERT INTO incidents (entity, what, opened, report) VALUES (?, ?, ?, '')",
                (*subject, incident.opened),
            ).lastrowid
        report = IncidentReport(
            id=number,
            **subject._asdict(),
            since=incident.since,
            opened=incident.opened,
            closed=closed,
            usual=incident.usual,
            share=incident.share,
            found=incident.rejected,
            seen=incident.seen,
        )
        if subject.what == UNKNOWN_FIELDS:
            report.names = self._new_names(report)
        else:
            self._add_what_stands_out(report)
        self._keep(report, event, tells=tells)
        return report

    def _new_names(self, report: IncidentReport) -> list[str]:
        rows = self._store.database.rows(
            "SELECT name, first FROM unknown_fields WHERE entity = ? ORDER BY records DESC",
            (report.entity,),
        )
        new = [name for name, first in rows if first >= report.since - _EARLIER_MS]
        return (new or [name for name, _ in rows])[:_MOST]

    def _add_what_stands_out(self, report: IncidentReport) -> None:
        entity = report.entity
        since = report.since + self._store.skew  # rejections have the broker's time
        minute = since // _MINUTE_MS * _MINUTE_MS
        during = self._latest(entity, since)
        before = self._frequencies(entity, minute - _DAY_MS, minute)
        # If the usual ones have become many, none stands out: then the most frequent are named.
        report.violations = stands_out(before.kinds, during.kinds) or stands_out({}, during.kinds)
        named = {name: count for name, count in during.producers.items() if name}
        report.producers = stands_out(before.producers, named) or stands_out({}, named)
        if before.kinds:  # with nothing to compare with, every partition would stand out
            report.partitions = stands_out(before.partitions, during.partitions)
        chosen = Filter(entity=entity, since=minute)
        if report.violations:
            code, field = report.violations[0]
            chosen = chosen._replace(code=code, field=field)
        found = queries.listed(self._store, chosen, _EXAMPLES, everything=True)
        report.examples = [one.coordinate for one in found]

    def _latest(self, entity: str, since: int) -> _Frequencies:
        """Of the rejections since that time; of many, the latest."""
        return _frequencies(
            self._store.database.rows(
                "SELECT k.violations, p.name, r.source_partition, count(*)"
                " FROM (SELECT * FROM rejections ORDER BY id DESC LIMIT ?) r"
                " JOIN kinds k ON k.id = r.kinds JOIN producers p ON p.id = r.producer"
                " WHERE r.at >= ? AND k.entity = ? GROUP BY 1, 2, 3",
                (_LATEST, since, entity),
            )
        )

    def _frequencies(self, entity: str, since: int, until: int) -> _Frequencies:
        """Of the rejections from `since` to `until`, which are whole minutes."""
        rows: list[tuple[Any, ...]] = []
        for level, first, end in cover(since, until):
            rows += self._store.database.rows(
                "SELECT k.violations, p.name, c.source_partition, sum(c.records) FROM counts c"
                " JOIN kinds k ON k.id = c.kinds JOIN producers p ON p.id = c.producer"
                " WHERE c.level = ? AND c.bucket >= ? AND c.bucket < ? AND k.entity = ?"
                " GROUP BY 1, 2, 3",
                (level, first, end, entity),
            )
        return _frequencies(rows)


def _frequencies(rows: Iterable[tuple[Any, ...]]) -> _Frequencies:
    found = _Frequencies(Counter(), Counter(), Counter())
    for violations, producer, partition, records in rows:
        for code, field in msgspec.json.decode(violations):
            found.kinds[code, field] += records
        found.producers[producer] += records
        found.partitions[partition] += records
    return found


def stands_out(before: Mapping[T, int], during: Mapping[T, int]) -> list[T]:
    """The values that are more frequent among the rejections of an incident than before it.

    The share of a value is its count divided by the sum of all counts. A value stands out if its
    share during the incident is at least 10 %, and either at least twice its share before or so
    large that the share of all others is at most half of theirs before. At most five, most
    frequent first, equal ones as in `during`. With nothing before, 10 % suffices.
    """
    total, total_before = sum(during.values()), sum(before.values())

    def stood_out(value: T) -> bool:
        share = during[value] / total
        usual = before.get(value, 0) / total_before if total_before else 0.0
        return share >= 0.1 and usual < 1 and share >= min(2 * usual, (1 + usual) / 2)

    found = filter(stood_out, during) if total else ()
    return sorted(found, key=lambda value: -during[value])[:_MOST]


def _states(event: IncidentOpened | IncidentClosed | None) -> int:
    if event is None:
        return 0
    return _OPENING if isinstance(event, IncidentOpened) else _CLOSING
