"""Which rows an export holds, and the reasons for the rows that it does not hold. Pure.

The rules are those of docs/contract.md, "Exports", judged against the whole store. A row whose
user is gone is left out and counted. A row whose match is gone stays and is counted. A match can
also be in the store but in no export, because one of its own users is gone. Rows that refer to such
a match stay as well, counted under their own reason. So a reader of the manifest can account for
every match_id.

With a date range, a row in the range pulls in the rows that it refers to. So entities are processed
in `LEVELS`, referring entities first: all ids pulled into an entity are known before its turn.
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


def _levels() -> tuple[tuple[str, ...], ...]:
    levels: dict[str, int] = {}

    def level(name: str) -> int:
        targets = {c.refers_to for c in ENTITIES[name].columns if c.refers_to is not None}
        return 1 + max(map(level, targets), default=-1)

    for name in ENTITIES:
        levels[name] = level(name)
    return tuple(
        tuple(name for name in ENTITIES if levels[name] == level)
        for level in sorted(set(levels.values()), reverse=True)
    )


LEVELS: Final = _levels()
"""The entities, each before those that it refers to: all others, then matches, then users."""


class Reason(StrEnum):
    """Why a row is not in the export, or why a match that an exported row refers to is not."""

    USER_GONE = "user_gone"
    MATCH_GONE = "match_gone"
    MATCH_LEFT_OUT = "match_left_out"
    OUT_OF_RANGE = "out_of_range"
    """Its date is outside the range, and no exported row refers to it."""
    DELETED = "deleted"
    """It is no longer in the store."""


class Days(msgspec.Struct, frozen=True):
    """A date range: inclusive days in UTC, YYYY-MM-DD; None is open."""

    start: str | None = None
    end: str | None = None

    @property
    def limited(self) -> bool:
        """Whether the range excludes any day."""
        return self.start is not None or self.end is not None

    def bounds(self) -> tuple[str, str]:
        """A moment in canonical form lies in the range if lowest <= moment < highest."""
        # In a moment, "T" follows the day; "U" sorts after "T", so the last day is included.
        return self.start or "", (self.end or "9999-12-31") + "U"


class Selection(msgspec.Struct, frozen=True):
    """The requested rows: of these entities, dated on these days, and the rows they refer to."""

    entities: tuple[str, ...]
    days: Days = Days()

    def in_stages(self) -> list[str]:
        """The selected entities in the order of processing."""
        return [name for level in LEVELS for name in level if name in self.entities]


class Picked(msgspec.Struct, frozen=True):
    """The outcome for the rows of one entity. Only reasons that occurred are listed.

    Rows outside the range that no exported row refers to were not requested, so are not counted.
    """

    rows: int
    left_out: Mapping[Reason, int]
    kept_without: Mapping[Reason, int]
    earliest: str | None
    """The date (YYYY-MM-DD) of the earliest exported row; None without rows."""


class Pulls(msgspec.Struct, frozen=True):
    """The ids that a date range pulls in: into one entity, and from that entity into others."""

    wanted: Iterator[str] = iter(())
    """The pulled-in ids of this entity, ascending; an id may repeat."""
    refer: Mapping[str, Callable[[str], None]] = {}
    """By entity, the callback for each id that an exported row refers to."""


UsersOf = Callable[[str, bytes], bytes | None]
"""For an entity and a 16-byte id: joined ids of the users its row refers to; None if unknown."""

_MOST_REMEMBERED: Final = 200_000  # of each kind; 35 MB a kind
_ALL_DAYS: Final = Days()
_NO_PULLS: Final = Pulls()
_LAST: Final = "~"
"""Sorts after every id."""


class KnownRows:
    """The users and matches that the store knows. It caches recent answers in bounded memory.

    Valid for one snapshot only.
    """

    def __init__(self, users_of: UsersOf, remembered: int = _MOST_REMEMBERED) -> None:
        self._users_of = users_of
        self._most = remembered
        self._users: dict[str, bool] = {}
        self._matches: dict[str, Reason | None] = {}

    def has_user(self, id_: str) -> bool:
        """Whether the user is in the store."""
        known = self._users.get(id_)
        if known is None:
            known = self._users_of("users", id_bytes(id_)) is not None
            _remember(self._users, id_, known, self._most)
        return known

    def lacks_match(self, id_: str) -> Reason | None:
        """Why the match is in no export; None if it can be in one."""
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
    """Tests which ids are in a stream of ids; both must come in ascending order."""

    def __init__(self, ids: Iterator[str]) -> None:
        self._ids = ids
        self._at = next(ids, _LAST)

    def advance_to(self, id_: str) -> bool:
        """Advance to the id; whether it is in the stream. Never ask for a lower id afterwards."""
        while self._at < id_:
            self._at = next(self._ids, _LAST)
        return self._at == id_


class Picker:
    """Decides which rows of one entity belong in the export, block by block.

    The blocks must come in the order of the store, which is the order of the export.
    """

    def __init__(
        self, entity: Entity, known: KnownRows, days: Days = _ALL_DAYS, pulls: Pulls = _NO_PULLS
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

    def pick(self, rows: Iterable[bytes]) -> list[Reason | None]:
        """For each canonical row, why it does not belong in the export; None if it does."""
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
        """Whether the row lies in the range, or an exported row refers to it."""
        if self._lowest <= date < self._highest:
            return True
        return self._referred and self._wanted.advance_to(self._id(read))

    def _users_gone(self, read: Any) -> bool:
        for column in self._users:
            id_ = column(read)
            if id_ is not None and not self._known.has_user(id_):
                return True
        return False


class ReferenceReader:
    """Reads the day of a row of one entity, and its references to the `targets` entities."""

    def __init__(self, entity: Entity, targets: Iterable[str]) -> None:
        self._decode = _reference_decoder(entity)
        self._date: Callable[[Any], str] = attrgetter(entity.date)
        self._columns = [(name, column) for name in targets for column in _columns(entity, name)]

    def read(self, row: bytes) -> tuple[str, list[tuple[str, str]]]:
        """The row's day (YYYY-MM-DD), and the entity and id of each reference."""
        read = self._decode(row)
        found = [(name, id_) for name, c in self._columns if (id_ := c(read)) is not None]
        return self._date(read)[:10], found


def date_range(earliest: Iterable[str | None], days: Days, export_day: str) -> tuple[str, str]:
    """First and last day for the metadata, both YYYY-MM-DD: the requested days.

    Without a requested end, the last day is the export's day. Without a requested start, the first
    day is that of the earliest row, or the last day without rows. The last day is never before the
    first.
    """
    last = days.end or max(export_day, days.start or "")
    first = days.start or min([*(day for day in earliest if day is not None), last])
    return first, last


def moment_of(milliseconds: int) -> datetime:
    """The moment in UTC, in whole seconds like all times in an export."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC)


def day_of(moment_ms: int) -> str:
    """The UTC day of a moment in milliseconds, YYYY-MM-DD."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d")


def _reference_decoder(entity: Entity, *, with_id: bool = False) -> Callable[[bytes], Any]:
    """A decoder of only a row's date and references, as text; it costs a third of a full decode.

    `with_id` adds the first column of the key.
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
