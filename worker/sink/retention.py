"""Which finished exports are removed. Pure: what there is comes in, names come out.

Exports are counted feed by feed: those under one bookmark are a feed, and so are all those without
one. In a feed a full export and the incremental ones that go on from it are a chain, which is kept
or removed as a whole: its parts are of no use without the first.
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
"""What has been beyond the limits for so long is removed: whoever began to fetch it has it."""


class Keep(msgspec.Struct, frozen=True):
    """How many exports of a feed are kept, and for how many days; 0: all of them, for ever."""

    exports: int = 0
    days: int = 0


class Old(msgspec.Struct, frozen=True):
    """A finished export, as far as it matters here."""

    name: str
    export_id: str
    at: datetime
    feed: str | None = None
    base: str | None = None
    """The id of the export that it goes on from."""
    order: Order = ()
    """By this they sort, before the time: a clock may have been wrong."""


def old_of(found: Finished, now: datetime) -> Old | None:
    """What matters of a finished export; None where its time is none of ours.

    Of its own time and those of the exports that it was marked with the latest counts that is not
    to come: one that was stamped ahead is as old as one that came after it, and a clock that was
    behind for a later one makes none older.
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
    """The names of the exports that are beyond either limit, the oldest first.

    A chain goes when its newest export is beyond. The newest export of each feed never does, with
    its chain.
    """
    feeds: dict[str | None, list[Old]] = {}
    latest = datetime.min.replace(tzinfo=UTC)
    for export in sorted(there, key=_age):
        # None is older than what came before it, though its clock may have been behind.
        latest = max(latest, export.at) if export.at <= now else latest
        aged = msgspec.structs.replace(export, at=max(latest, export.at))
        feeds.setdefault(export.feed, []).append(aged)
    beyond = [export for feed in feeds.values() for export in _beyond(feed, keep, now)]
    return [export.name for export in sorted(beyond, key=_age)]


def _age(export: Old) -> tuple[Order, datetime, str]:
    return export.order, export.at, export.name


class Retiring:
    """When exports that are beyond the limits go: a quarter of an hour after they got there.

    By a steady clock, so that somebody who has just been told of an export can fetch it, and a wall
    clock that is wrong for a moment removes nothing.
    """

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def announced(self, name: str, now: int) -> None:
        """An export was announced (again): it is spared, and with it all, for it may be a base."""
        if name in self._since:
            self._since = dict.fromkeys(self._since, now)

    def due(self, beyond: Sequence[str], now: int) -> list[str]:
        """Those of the exports found beyond the limits that are to be removed, in their order."""
        self._since = {name: self._since.get(name, now) for name in beyond}
        return [name for name in beyond if now - self._since[name] >= GRACE_MS]


def _beyond(feed: list[Old], keep: Keep, now: datetime) -> list[Old]:
    """Of one feed, oldest first."""
    first = _firsts(feed)
    newest: dict[str, int] = {}
    for place, export in enumerate(feed):
        newest[first[export.export_id]] = place
    kept = {
        chain
        for chain, place in newest.items()
        if place == len(feed) - 1
        or (
            (not keep.exports or len(feed) - place <= keep.exports)
            and (not keep.days or now - feed[place].at <= timedelta(days=keep.days))
        )
    }
    return [export for export in feed if first[export.export_id] not in kept]


def _firsts(feed: list[Old]) -> Mapping[str, str]:
    """By export the one that its chain begins with; a base that has gone begins none.

    By their ids alone: a clock that was set back puts an export before its base.
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
