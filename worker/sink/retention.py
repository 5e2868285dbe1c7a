"""Which finished exports to remove. Pure: finished exports come in, names come out.

Retention counts exports per feed. The exports under one bookmark are a feed; all exports without a
bookmark are another. In a feed, a full export and the incremental exports based on it are a chain.
A chain is kept or removed as a whole: its other exports are useless without the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from worker.exports.order import Order
from worker.exports.places.place import Finished
from worker.sink.requests import feed_of

GRACE_MS: Final = 900_000
"""How long an export stays after passing a limit, so that a fetch that has begun can finish."""


class Keep(msgspec.Struct, frozen=True):
    """How many exports of a feed are kept, and for how many days; 0 sets no limit."""

    exports: int = 0
    days: int = 0


class Old(msgspec.Struct, frozen=True):
    """The facts about a finished export that retention needs."""

    name: str
    export_id: str
    at: datetime
    feed: str | None = None
    base: str | None = None
    """The id of its base export."""
    order: Order = ()
    """The first sort key, before the time: a clock may have been wrong."""


def old_of(found: Finished, now: datetime) -> Old | None:
    """The facts about a finished export; None if one of its times cannot be read.

    An export has its own time, and the times of later exports in its marks. The latest of them
    that is not in the future counts; if all are, the earliest. So an export with a time too far
    ahead is as old as the one after it. A slow clock of a later export makes none older.
    """
    manifest = found.manifest
    try:
        times = [
            datetime.strptime(time, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            for time in found.order[:-1]
        ]
    except ValueError:
        return None
    at = max((time for time in times if time <= now), default=times[0])
    increment = manifest.incremental
    base = None if increment is None or increment.base is None else increment.base.export_id
    return Old(found.name, manifest.export_id, at, feed_of(manifest), base, found.order)


def to_remove(there: Iterable[Old], keep: Keep, now: datetime) -> list[str]:
    """The names of the exports beyond either limit, oldest first.

    A chain goes when its newest export is beyond a limit. The chain with a feed's newest export
    always stays.
    """
    feeds: dict[str | None, list[Old]] = {}
    latest = datetime.min.replace(tzinfo=UTC)
    for export in sorted(there, key=_age):
        # No export is older than those before it, even if its clock was slow.
        latest = max(latest, export.at) if export.at <= now else latest
        aged = msgspec.structs.replace(export, at=max(latest, export.at))
        feeds.setdefault(export.feed, []).append(aged)
    beyond = [export for feed in feeds.values() for export in _beyond(feed, keep, now)]
    return [export.name for export in sorted(beyond, key=_age)]


def _age(export: Old) -> tuple[Order, datetime, str]:
    return export.order, export.at, export.name


class Retiring:
    """Delays removal until a quarter of an hour after an export got beyond the limits.

    So a client that was just told of an export can still fetch it. The clock is steady, so a wall
    clock that is wrong for a moment removes nothing.
    """

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def announced(self, name: str, now: int) -> None:
        """An export was announced (again). If it is waiting for removal, all delays restart.

        The export may be the base of another waiting export, or be based on one.
        """
        if name in self._since:
            self._since = dict.fromkeys(self._since, now)

    def update(self, beyond: Sequence[str], now: int) -> list[str]:
        """Note which exports are beyond the limits now; returns those to remove, in that order."""
        self._since = {name: self._since.get(name, now) for name in beyond}
        return [name for name in beyond if now - self._since[name] >= GRACE_MS]


def _beyond(feed: list[Old], keep: Keep, now: datetime) -> list[Old]:
    """The exports of one feed that are beyond the limits. Feed and result are oldest first."""
    first = _firsts(feed)
    newest: dict[str, int] = {}
    for index, export in enumerate(feed):
        newest[first[export.export_id]] = index
    kept = {
        chain
        for chain, index in newest.items()
        if index == len(feed) - 1
        or (
            (not keep.exports or len(feed) - index <= keep.exports)
            and (not keep.days or now - feed[index].at <= timedelta(days=keep.days))
        )
    }
    return [export for export in feed if first[export.export_id] not in kept]


def _firsts(feed: list[Old]) -> Mapping[str, str]:
    """By export: the first one of its chain that is still there.

    The ids alone decide: a clock that was set back puts an export before its base.
    """
    base = {export.export_id: export.base for export in feed}
    first = {}
    for export_id in base:
        start, seen = export_id, {export_id}
        while (before := base[start]) is not None and before in base and before not in seen:
            seen.add(before)
            start = before
        first[export_id] = start
    return first
