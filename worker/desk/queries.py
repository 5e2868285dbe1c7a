"""Answers about the rejections in the store: filters, counts, lists."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from worker.desk.buckets import WIDTHS_MS, cover
from worker.desk.counts import OPEN, STATES
from worker.desk.seen import key_digest
from worker.desk.store import RejectionStore
from worker.stream import Partition

_MINUTE_MS: Final = WIDTHS_MS[0]
_EVER: Final = WIDTHS_MS[-1] * 10**6
"""Later than any rejection: in the year 4707."""


class Filter(NamedTuple):
    """Which rejections are meant; what is None does not matter.

    `since` and `until` are in milliseconds and count by whole minutes: the minute of `since` is
    included, and so is the minute before `until`.
    """

    entity: str | None = None
    code: str | None = None
    field: str | None = None
    producer: str | None = None
    partition: int | None = None
    key: str | None = None
    since: int | None = None
    until: int | None = None


class ViolationKind(msgspec.Struct, frozen=True, order=True):
    """A kind of violation. `field` has no list indices."""

    entity: str
    code: str
    field: str


class Counted(msgspec.Struct):
    """How many rejections have a kind of violation, and the seconds of the first and the last.

    `open` of them are open. `consequences` are orphans, all of them open, that a rejection of this
    kind has caused.
    """

    records: int = 0
    open: int = 0
    first: int = 1 << 62
    last: int = 0
    consequences: int = 0


class Summary(NamedTuple):
    """Rejections, how many of them are open, and the counts by kind, most open ones first."""

    records: int
    open: int
    kinds: list[tuple[ViolationKind, Counted]]


class RejectionListed(msgspec.Struct, frozen=True):
    """A rejection in a list. Coordinates are `topic/partition/offset`."""

    coordinate: str
    source: str
    at: int
    entity: str
    violations: list[tuple[str, str]]
    producer: str
    state: str
    cause: str | None


def summary(store: RejectionStore, chosen: Filter) -> Summary:
    """The counts of the chosen rejections. Its cost does not grow with their number."""
    kinds = _kinds(store)
    total = Counted()
    found: defaultdict[ViolationKind, Counted] = defaultdict(Counted)
    for number, cause, records, open_, first, last in _counts(store, chosen, kinds):
        entity, violations = kinds[number]
        for counted in (total, *(found[ViolationKind(entity, *one)] for one in violations)):
            counted.records += records
            counted.open += open_
            counted.first = min(counted.first, first)
            counted.last = max(counted.last, last)
        if cause in kinds and open_:
            entity, violations = kinds[cause]
            for one in violations:
                found[ViolationKind(entity, *one)].consequences += open_
    shown = [(kind, counted) for kind, counted in found.items() if counted.records]
    shown.sort(key=lambda each: (-each[1].open, -each[1].records, each[0]))
    return Summary(total.records, total.open, shown)


def over_time(store: RejectionStore, chosen: Filter, parts: int) -> list[int]:
    """The chosen rejections from `since` to `until`, which must be given, in that many parts."""
    assert chosen.since is not None
    assert chosen.until is not None
    width = max(1, -(-(chosen.until - chosen.since) // parts))
    found = [0] * parts
    kinds = _kinds(store)
    where, values = _conditions(store, chosen, kinds)
    if where is None:
        return found
    level = max((i for i, each in enumerate(WIDTHS_MS) if each <= width), default=0)
    bucket = WIDTHS_MS[level]
    if chosen.key is not None and chosen.entity is not None:
        rows = store.database.rows(
            f"SELECT r.at / {bucket}, count(*) FROM rejections r"
            f" WHERE r.key = ? AND r.at >= ? AND r.at < ?{where} GROUP BY 1",
            (key_digest(chosen.entity, chosen.key), chosen.since, chosen.until, *values),
        )
    else:
        rows = store.database.rows(
            "SELECT bucket, sum(records) FROM counts r"
            f" WHERE level = ? AND bucket >= ? AND bucket < ?{where} GROUP BY bucket",
            (level, chosen.since // bucket, -(-chosen.until // bucket), *values),
        )
    for number, records in rows:
        index = min(parts - 1, max(0, (number * bucket - chosen.since) // width))
        found[index] += records
    return found


def listed(
    store: RejectionStore, chosen: Filter, limit: int, *, everything: bool
) -> list[RejectionListed]:
    """The newest chosen rejections, at most `limit`: the open ones, or also the settled ones."""
    where, values = _chosen(store, chosen, _kinds(store))
    if where is None:
        return []
    if not everything:
        where += f" AND r.state = {OPEN}"
    return [one for _, one in listed_where(store, where, values, limit)]


class RejectionPage(NamedTuple):
    """Some of a list of rejections, with their numbers in the store, and whether there are more."""

    rejections: list[tuple[int, RejectionListed]]
    more: bool


def page(
    store: RejectionStore, chosen: Filter, limit: int, before: int | None, *, everything: bool
) -> RejectionPage:
    """The newest chosen rejections whose number in the store is less than `before`."""
    where, values = _chosen(store, chosen, _kinds(store))
    if where is None:
        return RejectionPage([], more=False)
    wanted: list[int] = [*values]
    if not everything:
        where += f" AND r.state = {OPEN}"
    if before is not None:
        where += " AND r.id < ?"
        wanted.append(before)
    found = listed_where(store, where, wanted, limit + 1)
    return RejectionPage(found[:limit], len(found) > limit)


_SUPERSEDED: Final = "EXISTS (SELECT 1 FROM rejections n WHERE n.key = r.key AND n.id > r.id)"


class Candidate(NamedTuple):
    """A rejection that may be replayed. `number` grows with the order in which they were read."""

    number: int
    partition: Partition
    offset: int
    state: int
    superseded: bool = False
    """Whether a newer record of its key was rejected as well."""


def candidates(
    store: RejectionStore,
    chosen: Filter,
    entities: Collection[str],
    after: int,
    limit: int,
    *,
    consequences: bool,
) -> list[Candidate]:
    """The chosen rejections of these entities behind the number `after`, in order of numbers.

    With `consequences`, also the orphans that the chosen ones have caused, whatever else is chosen.
    """
    kinds = _kinds(store)
    where, values = _chosen(store, chosen, kinds)
    if where is None:
        return []
    wanted: list[str | int] = [*values]
    if consequences:
        where = f"({where} OR r.cause IN (SELECT r.id FROM rejections r WHERE {where}))"
        wanted *= 2
    numbers = ",".join(str(n) for n, (entity, _) in kinds.items() if entity in entities)
    rows = store.database.rows(
        f'SELECT r.id, p.topic, p.number, r."offset", r.state, {_SUPERSEDED} FROM rejections r'
        " JOIN partitions p ON p.id = r.topic_partition"
        f" WHERE r.id > ? AND r.kinds IN ({numbers}) AND {where} ORDER BY r.id LIMIT ?",
        (after, *wanted, limit),
    )
    return [
        Candidate(id_, Partition(topic, number), offset, state, bool(superseded))
        for id_, topic, number, offset, state, superseded in rows
    ]


def candidate_at(store: RejectionStore, coordinate: str) -> Candidate | None:
    """The rejection at a coordinate, as `at_coordinate` finds it."""
    listed = at_coordinate(store, coordinate)
    if listed is None:
        return None
    topic, number, offset = listed.coordinate.rsplit("/", 2)
    partition, state = Partition(topic, int(number)), STATES.index(listed.state)
    return Candidate(0, partition, int(offset), state)


def orphans_of(store: RejectionStore, chosen: Filter) -> int:
    """The open orphans that chosen rejections have caused, and that are not chosen themselves."""
    where, values = _chosen(store, chosen, _kinds(store))
    if where is None:
        return 0
    ((count,),) = store.database.rows(
        f"WITH chosen AS (SELECT r.id FROM rejections r WHERE {where})"
        f" SELECT count(*) FROM rejections o WHERE o.state = {OPEN}"
        " AND o.cause IN chosen AND o.id NOT IN chosen",
        values,
    )
    return int(count)


def at_coordinate(store: RejectionStore, coordinate: str) -> RejectionListed | None:
    """The rejection at a coordinate of a topic of rejections, or the latest one of a record."""
    topic, partition, offset = coordinate.rsplit("/", 2)
    entity = store.names.entity_of(topic)
    where = "p.topic = ? AND p.number = ? AND r.offset = ?"
    if topic == store.names.input(entity):
        topic = store.names.rejected(entity)
        where = "p.topic = ? AND r.source_partition = ? AND r.source_offset = ?"
    found = listed_where(store, where, (topic, int(partition), int(offset)), 1)
    return found[0][1] if found else None


def listed_where(
    store: RejectionStore,
    where: str,
    values: Sequence[str | int],
    limit: int,
    order: str = "DESC",
) -> list[tuple[int, RejectionListed]]:
    """The rejections that meet a condition on `r`, with their numbers, in order of these."""
    kinds = _kinds(store)
    rows = store.database.rows(
        "SELECT r.id, r.at, r.kinds, p.topic, p.number, r.offset, r.source_partition,"
        " r.source_offset, n.name, r.state, c.kinds, c.source_partition, c.source_offset"
        " FROM rejections r JOIN partitions p ON p.id = r.topic_partition"
        " JOIN producers n ON n.id = r.producer LEFT JOIN rejections c ON c.id = r.cause"
        f" WHERE {where} ORDER BY r.id {order} LIMIT ?",
        (*values, limit),
    )
    found = []
    for id_, at, number, topic, q, offset, sp, so, producer, state, *cause in rows:
        entity, violations = kinds[number]
        caused_by = None
        if cause[0] is not None:
            caused_by = f"{store.names.input(kinds[cause[0]][0])}/{cause[1]}/{cause[2]}"
        listed_ = RejectionListed(
            f"{topic}/{q}/{offset}",
            f"{store.names.input(entity)}/{sp}/{so}",
            at,
            entity,
            violations,
            producer,
            STATES[state],
            caused_by,
        )
        found.append((id_, listed_))
    return found


def unknown_fields(store: RejectionStore, entity: str | None) -> dict[str, dict[str, int]]:
    """By entity: names of fields that have no column, with the number of records."""
    found: dict[str, dict[str, int]] = {}
    for name, field, records in store.database.rows(
        "SELECT entity, name, records FROM unknown_fields ORDER BY entity, records DESC, rowid"
    ):
        if entity in (None, name):
            found.setdefault(name, {})[field] = records
    return found


def _kinds(store: RejectionStore) -> dict[int, tuple[str, list[tuple[str, str]]]]:
    return {
        number: (entity, [(code, field) for code, field in json.loads(violations)])
        for number, entity, violations in store.database.rows("SELECT * FROM kinds")
    }


def _conditions(
    store: RejectionStore,
    chosen: Filter,
    kinds: Mapping[int, tuple[str, Sequence[tuple[str, str]]]],
) -> tuple[str | None, list[int]]:
    """What follows WHERE, and its values; None if nothing can be chosen."""
    where, values = "", list[int]()
    if chosen.entity or chosen.code or chosen.field:
        numbers = [
            number
            for number, (entity, violations) in kinds.items()
            if chosen.entity in (None, entity)
            and any(
                chosen.code in (None, code) and chosen.field in (None, field)
                for code, field in violations
            )
        ]
        where += f" AND r.kinds IN ({','.join(map(str, numbers))})"
    if chosen.producer is not None:
        found = store.database.rows("SELECT id FROM producers WHERE name = ?", (chosen.producer,))
        if not found:
            return None, []
        where += " AND r.producer = ?"
        values += found[0]
    if chosen.partition is not None:
        where += " AND r.source_partition = ?"
        values.append(chosen.partition)
    return where, values


def _chosen(
    store: RejectionStore,
    chosen: Filter,
    kinds: Mapping[int, tuple[str, Sequence[tuple[str, str]]]],
) -> tuple[str | None, list[int]]:
    """The condition that a rejection is chosen, and its values; None if none can be."""
    where, values = _conditions(store, chosen, kinds)
    if where is None:
        return None, []
    values = [*_span(chosen), *values]
    if chosen.key is not None and chosen.entity is not None:
        where += " AND r.key = ?"
        values.append(key_digest(chosen.entity, chosen.key))
    return f"r.at >= ? AND r.at < ?{where}", values


def _counts(
    store: RejectionStore,
    chosen: Filter,
    kinds: Mapping[int, tuple[str, Sequence[tuple[str, str]]]],
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """By kinds of the rejection and of its cause: records, open ones, first and last time."""
    where, values = _conditions(store, chosen, kinds)
    if where is None:
        return
    if chosen.key is not None and chosen.entity is not None:
        yield from store.database.rows(
            f"SELECT kinds, cause_kinds, count(*), sum(state = {OPEN}), min(at), max(at)"
            f" FROM rejections r WHERE key = ? AND at >= ? AND at < ?{where}"
            " GROUP BY kinds, cause_kinds",
            (key_digest(chosen.entity, chosen.key), *_span(chosen), *values),
        )
        return
    for level, first, end in cover(*_span(chosen)):
        width = WIDTHS_MS[level]
        yield from store.database.rows(
            "SELECT kinds, cause_kinds, sum(records), sum(open),"
            f" min(bucket * {width} + first * 1000), max(bucket * {width} + last * 1000)"
            " FROM counts r WHERE level = ? AND bucket >= ? AND bucket < ?"
            f"{where} GROUP BY kinds, cause_kinds",
            (level, first, end, *values),
        )


def _span(chosen: Filter) -> tuple[int, int]:
    since = 0 if chosen.since is None else chosen.since - chosen.since % _MINUTE_MS
    until = _EVER if chosen.until is None else -(-chosen.until // _MINUTE_MS) * _MINUTE_MS
    return since, until
