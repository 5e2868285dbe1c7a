"""Which rows an export holds, and what is said about those it does not hold. Pure.

docs/contract.md, "Exports": a row whose user is gone, judged against the whole store, is left out
and counted; one whose match is gone stays and is counted. A match can also be in the store and yet
in no export, because one of its own users is gone: rows that refer to it stay as well, counted by
a reason of their own, so that a reader of the manifest can account for every match_id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final

import msgspec

from schemas import Entity
from worker.core.keys import id_bytes


class Reason(StrEnum):
    """Why a row is left out, or what it lacks although it stays."""

    USER_GONE = "user_gone"
    MATCH_GONE = "match_gone"
    MATCH_LEFT_OUT = "match_left_out"


class Picked(msgspec.Struct, frozen=True):
    """What became of the rows of one entity. Only reasons that occurred are listed."""

    rows: int
    left_out: Mapping[Reason, int]
    kept_without: Mapping[Reason, int]
    earliest: str | None
    """The date (YYYY-MM-DD) of the earliest row in the export; None without rows."""


UsersOf = Callable[[str, bytes], bytes | None]
"""Of an entity's 16-byte id the joined ids of users its row refers to; None if it is unknown."""

_MOST_REMEMBERED: Final = 200_000  # of each kind, 35 MB


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


class Picker:
    """Picks the rows of one entity, block after block.

    A date range and references that are pulled in will narrow and widen what `pick` keeps; the
    order of the rows is the store's and stays.
    """

    def __init__(self, entity: Entity, known: Known) -> None:
        self._known = known
        self._decode = _reference_decoder(entity)
        self._date: Callable[[Any], str] = attrgetter(entity.date)
        self._users = _columns(entity, "users")
        self._matches = _columns(entity, "matches")
        self._left_out: dict[Reason, int] = {}
        self._kept_without: dict[Reason, int] = {}
        self._rows = 0
        self._earliest = "9999-12-31T24"

    def pick(self, rows: Iterable[bytes]) -> list[bytes]:
        """Those of the canonical rows that belong into the export, in their order."""
        picked = []
        earliest = self._earliest
        for row in rows:
            read = self._decode(row)
            if self._users_gone(read):
                _count(self._left_out, Reason.USER_GONE)
                continue
            for column in self._matches:
                id_ = column(read)
                if id_ is not None and (lack := self._known.lacks_match(id_)) is not None:
                    _count(self._kept_without, lack)
            earliest = min(earliest, self._date(read))
            picked.append(row)
        self._earliest = earliest
        self._rows += len(picked)
        return picked

    def picked(self) -> Picked:
        """The outcome so far."""
        earliest = self._earliest[:10] if self._rows else None
        return Picked(self._rows, dict(self._left_out), dict(self._kept_without), earliest)

    def _users_gone(self, read: Any) -> bool:
        for column in self._users:
            id_ = column(read)
            if id_ is not None and not self._known.has_user(id_):
                return True
        return False


def date_range(picked: Iterable[Picked], export_day: str) -> tuple[str, str]:
    """First and last day for the metadata, both YYYY-MM-DD: the earliest row to the export's day.

    Without a row it begins on the export's day, too.
    """
    days = [outcome.earliest for outcome in picked if outcome.earliest is not None]
    return min([*days, export_day]), export_day


def day_of(moment_ms: int) -> str:
    """The UTC day of a moment in milliseconds, YYYY-MM-DD."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).strftime("%Y-%m-%d")


def _reference_decoder(entity: Entity) -> Callable[[bytes], Any]:
    """Decodes of a row only its date and its references, as text: a third of a full decode."""
    names = [c.name for c in entity.columns if c.refers_to is not None]
    fields: list[tuple[str, Any, Any]] = [(name, str | None, None) for name in names]
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
