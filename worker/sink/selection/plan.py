"""Which rows an export holds, and what is said about those it does not hold. Pure.

docs/contract.md, "Exports": a row whose user is gone, judged against the whole store, is left out
and counted; one whose match is gone stays and is counted. A match can also be in the store and yet
in no export, because one of its own users is gone: rows that refer to it stay as well, counted by
a reason of their own, so that a reader of the manifest can account for every match_id.

With a date range, what a row in it refers to comes along. So entities are looked at in `STAGES`,
those that refer first: whatever is pulled in is known by the time its own entity has its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

import msgspec

from schemas import ENTITIES, Entity
from worker.core.keys import id_bytes
from worker.sink.store.rows import REFERRED


def _stages() -> tuple[tuple[str, ...], ...]:
    levels: dict[str, int] = {}

    def level(name: str) -> int:
        targets = {c.refers_to for c in ENTITIES[name].columns if c.refers_to is not None}
        return 1 + max(map(level, targets), default=-1)

    for name in ENTITIES:
        levels[name] = level(name)
    return tuple(
        tuple(name for name in ENTITIES if levels[name] == stage)
        for stage in sorted(set(levels.values()), reverse=True)
    )


STAGES: Final = _stages()
"""The entities, each before those that it refers to: the rest, then matches, users last."""


class Reason(StrEnum):
    """Why a row is not in the export, or what it lacks although it is."""

    USER_GONE = "user_gone"
    MATCH_GONE = "match_gone"
    MATCH_LEFT_OUT = "match_left_out"
    OUT_OF_RANGE = "out_of_range"
    """Neither is its date in the range, nor does a row in the range refer to it."""
    DELETED = "deleted"
    """It is no longer in the store."""


class Days(msgspec.Struct, frozen=True):
    """A date range: inclusive days in UTC, YYYY-MM-DD; None is open."""

    start: str | None = None
    end: str | None = None

    @property
    def limited(self) -> bool:
        """Whether there is anything that does not lie in it."""
        return self.start is not None or self.end is not None

    def bounds(self) -> tuple[str, str]:
        """A moment in canonical form lies in the range if lowest <= moment < highest."""
        return self.start or "", (self.end or "9999-12-31") + "U"  # a moment goes on with T


class Selection(msgspec.Struct, frozen=True):
    """Which rows are asked for: of these entities, dated on these days, and what they refer to."""

    entities: tuple[str, ...]
    days: Days = Days()

    def in_stages(self) -> list[str]:
        """The selected entities in the order in which they are looked at."""
        return [name for stage in STAGES for name in stage if name in self.entities]


class Picked(msgspec.Struct, frozen=True):
    """What became of the rows of one entity. Only reasons that occurred are listed.

    Rows outside of the range that nothing refers to were not asked for: they are not counted.
    """

    rows: int
    left_out: Mapping[Reason, int]
    kept_without: Mapping[Reason, int]
    earliest: str | None
    """The date (YYYY-MM-DD) of the earliest row in the export; None without rows."""


class Pulls(msgspec.Struct, frozen=True):
    """The two ends of what a date range pulls in, for one entity."""

    wanted: Iterator[str] = iter(())
    """The ids of this entity that are referred to, ascending; each may come more than once."""
    refer: Mapping[str, Callable[[str], None]] = {}
    """Where to say, by entity, which ids the rows in the range refer to."""


UsersOf = Callable[[str, bytes], bytes | None]
"""Of an entity's 16-byte id the joined ids of users its row refers to; None if it is unknown."""

_MOST_REMEMBERED: Final = 200_000  # of each kind, 35 MB
_ALL_DAYS: Final = Days()
_NO_PULLS: Final = Pulls()
_LAST: Final = "~"
"""Comes after every id."""


class Known:
    """What the store knows of users and matches. Remembers the latest answers, in bounded memory.

    Good for one snapshot only.
    """

    def __init__(self, users_of: UsersOf, remembered: int = _MOST_REMEMBERED) -> None:
        self._users_of = users_of
        self._most = remembered
        self._users: dict[str, bool] = {}
        self._matches: dict[str, Reason | None] = {}

    def has_user(self, id_: str) -> bool:
        """Whether that user is in the store."""
        known = self._users.get(id_)
        if known is None:
            known = self._users_of("users", id_bytes(id_)) is not None
            _remember(self._users, id_, known, self._most)
        return known

    def lacks_match(self, id_: str) -> Reason | None:
        """Why that match is in no export; None if it is in."""
        try:
            return self._matches[id_]
        except KeyError:
            reason = self._judge_match(id_bytes(id_))
            _remember(self._matches, id_, reason, self._most)
            return reason

    def _judge_match(self, id_: bytes) -> Reason | None:
        users = self._users_of("matches", id_)
        if users is None:
            return Reason.MATCH_GONE
        for start in range(0, len(users), 16):
            if self._users_of("users", users[start : start + 16]) is None:
                return Reason.MATCH_LEFT_OUT
        return None


class Ascending:
    """Answers which ids are among many; both must come in ascending order."""

    def __init__(self, ids: Iterator[str]) -> None:
        self._ids = ids
        self._at = next(ids, _LAST)

    def has(self, id_: str) -> bool:
        """Whether it is among them; never ask for a lower one afterwards."""
        while self._at < id_:
            self._at = next(self._ids, _LAST)
        return self._at == id_


class Picker:
    """Decides which rows of one entity belong into the export, block after block.

    The blocks must come in the order of the store, which is the order of the export.
    """

    def __init__(
        self, entity: Entity, known: Known, days: Days = _ALL_DAYS, pulls: Pulls = _NO_PULLS
    ) -> None:
        self._known = known
        self._referred = days.limited and entity.name in REFERRED
        self._decode = _reference_decoder(entity, with_id=self._referred)
        self._date: Callable[[Any], str] = attrgetter(entity.date)
        self._id: Callable[[Any], str] = attrgetter(entity.key[0])
        self._users = _columns(entity, "users")
        self._matches = _columns(entity, "matches")
        self._limited = days.limited
        self._lowest, self._highest = days.bounds()
        self._wanted = Ascending(pulls.wanted)
        columns = {"users": self._users, "matches": self._matches}
        self._refer = [(c, pulls.refer[name]) for name in pulls.refer for c in columns[name]]
        self._left_out: dict[Reason, int] = {}
        self._kept_without: dict[Reason, int] = {}
        self._rows = 0
        self._earliest = "9999-12-31T24"

    def judge(self, rows: Iterable[bytes]) -> list[Reason | None]:
        """Of each canonical row why it does not belong into the export, None if it does."""
        fates: list[Reason | None] = []
        decode, date_of = self._decode, self._date
        limited, earliest = self._limited, self._earliest
        for row in rows:
            read = decode(row)
            date = date_of(read)
            if limited and not self._in_range(date, read):
                fates.append(Reason.OUT_OF_RANGE)
                continue
            if self._users_gone(read):
                _count(self._left_out, Reason.USER_GONE)
                fates.append(Reason.USER_GONE)
                continue
            for column in self._matches:
                id_ = column(read)
                if id_ is not None and (lack := self._known.lacks_match(id_)) is not None:
                    _count(self._kept_without, lack)
            for column, refer in self._refer:
                id_ = column(read)
                if id_ is not None:
                    refer(id_)
            if date < earliest:  # noqa: PLR1730 -- a call of min is slower, and this is hot
                earliest = date
            fates.append(None)
        self._earliest = earliest
        self._rows += fates.count(None)
        return fates

    def picked(self) -> Picked:
        """The outcome so far."""
        earliest = self._earliest[:10] if self._rows else None
        return Picked(self._rows, dict(self._left_out), dict(self._kept_without), earliest)

    def _in_range(self, date: str, read: Any) -> bool:
        """Whether it lies in the range, or what does refers to it."""
        if self._lowest <= date < self._highest:
            return True
        return self._referred and self._wanted.has(self._id(read))

    def _users_gone(self, read: Any) -> bool:
        for column in self._users:
            id_ = column(read)
            if id_ is not None and not self._known.has_user(id_):
                return True
        return False


class Reader:
    """Reads of a row of one entity its day and what it refers to among some entities."""

    def __init__(self, entity: Entity, targets: Iterable[str]) -> None:
        self._decode = _reference_decoder(entity)
        self._date: Callable[[Any], str] = attrgetter(entity.date)
        self._columns = [(name, column) for name in targets for column in _columns(entity, name)]

    def read(self, row: bytes) -> tuple[str, list[tuple[str, str]]]:
        """The row's day (YYYY-MM-DD), and entity and id of each reference."""
        read = self._decode(row)
        found = [(name, id_) for name, c in self._columns if (id_ := c(read)) is not None]
        return self._date(read)[:10], found


def date_range(earliest: Iterable[str | None], days: Days, export_day: str) -> tuple[str, str]:
    """First and last day for the metadata, both YYYY-MM-DD: those asked for.

    Where none was asked for: the day of the earliest row (without a row the export's day), and the
    export's day. The last is never before the first.
    """
    last = days.end or max(export_day, days.start or "")
    first = days.start or min([*(day for day in earliest if day is not None), last])
    return first, last


def day_of(moment_ms: int) -> str:
    """The UTC day of a moment in milliseconds, YYYY-MM-DD."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d")


def _reference_decoder(entity: Entity, *, with_id: bool = False) -> Callable[[bytes], Any]:
    """Decodes of a row only its date and its references, as text: a third of a full decode.

    `with_id` adds the first column of its key.
    """
    names = [c.name for c in entity.columns if c.refers_to is not None]
    fields: list[tuple[str, Any, Any]] = [(name, str | None, None) for name in names]
    if with_id:
        fields.append((entity.key[0], str | None, None))
    slim = msgspec.defstruct(
        "References", [(entity.date, str), *fields], frozen=True, gc=False, kw_only=True
    )
    return msgspec.json.Decoder(slim).decode


def _columns(entity: Entity, target: str) -> tuple[Callable[[Any], str | None], ...]:
    return tuple(attrgetter(c.name) for c in entity.columns if c.refers_to == target)


def _remember(memory: dict[str, Any], id_: str, known: object, most: int) -> None:
    if len(memory) >= most:
        memory.clear()
    memory[id_] = known


def _count(counts: dict[Reason, int], reason: Reason) -> None:
    counts[reason] = counts.get(reason, 0) + 1
