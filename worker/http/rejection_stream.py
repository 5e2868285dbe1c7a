"""`GET /v1/rejections/stream`: an event for each new rejection, as server-sent events.

One follower reads the store for all streams, and keeps the latest events. A stream that is behind
them reads the store by itself. So an idle stream costs nothing, and a slow client no memory.

Delivery: at least once, as long as the client comes back with `Last-Event-ID` before the rejection
leaves its topic. To another process, or after the store was made anew, the id tells only a time:
then the events of the minute before come again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any, Final, NamedTuple

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from worker.desk.answers import listed_answer
from worker.desk.latest import last_read, number_before, since_number
from worker.desk.queries import RejectionListed
from worker.desk.store import RejectionStore
from worker.errors import BuddyError
from worker.http import opaque
from worker.http.desk_reader import DeskReader
from worker.http.event_streams import EventStreams
from worker.http.parameters import malformed
from worker.http.problems import Problem
from worker.http.rejection_query import filter_of, parameters

KEPT: Final = 2_000
"""The latest events in memory."""
_PAGE: Final = 500
_POLL_SECONDS: Final = 1.0
_QUIET_SECONDS: Final = 15.0
"""After so long without an event, a stream says that it is there."""
_OVERLAP_MS: Final = 60_000
"""How far apart two stores may read rejections of the same time."""
_RETRY_MS: Final = 2_000

_log = structlog.get_logger(__name__)


class EventPlace(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How far a stream is: the number of a rejection in a store, and its time."""

    identity: str
    number: int
    at: int

    def encode(self) -> str:
        """The place as the id of an event."""
        return opaque.encode(self)


def decode_place(text: str) -> EventPlace | None:
    """The place in the id of an event; None if there is none."""
    place = opaque.decode(text, EventPlace)
    if place and 0 <= place.number < 2**63 and 0 <= place.at < 2**62:
        return place
    return None


class RejectionEvent(NamedTuple):
    """A new rejection, and the place behind it."""

    place: EventPlace
    entity: str
    codes: frozenset[str]
    content: bytes

    @classmethod
    def of(cls, identity: str, number: int, listed: RejectionListed) -> RejectionEvent:
        """The event of a rejection of a list."""
        place = EventPlace(identity, number, listed.at)
        told = listed_answer(listed)
        del told["state"]  # of now, and new ones are open
        content = b"id: %b\nevent: rejection\ndata: %b\n\n" % (
            place.encode().encode(),
            msgspec.json.encode(told),
        )
        codes = frozenset(code for code, _ in listed.violations)
        return cls(place, listed.entity, codes, content)


class EventBatch(NamedTuple):
    """Events, and the place behind what was read. `more` if there is more at once."""

    events: list[RejectionEvent]
    place: EventPlace
    more: bool = False


def read_events(store: RejectionStore, after: EventPlace) -> EventBatch:
    """The next events of a store behind a place, which may be one of another store. Blocking."""
    identity = store.database.identity
    since = 0
    if after.identity != identity or last_read(store)[0] < after.number:  # it has other numbers
        since = max(0, after.at - _OVERLAP_MS)
        after = EventPlace(identity, number_before(store, since), after.at)
    found = since_number(store, after.number, _PAGE)
    events = [RejectionEvent.of(identity, number, listed) for number, listed in found.rejections]
    if events:
        after = events[-1].place
    return EventBatch([e for e in events if e.place.at >= since], after, found.more)


class RejectionFollower:
    """Reads new rejections for all streams, as long as there are any."""

    def __init__(self, desk: DeskReader) -> None:
        self.has_ended = False
        """Whether streams are to end."""
        self._desk = desk
        self._streams = 0
        self._running: asyncio.Task[None] | None = None
        self._kept: deque[RejectionEvent] = deque(maxlen=KEPT)
        self._place: EventPlace | None = None
        """Behind the latest event."""
        self._news = asyncio.Event()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Count a stream that follows."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def now(self) -> EventPlace:
        """The place behind everything that the topics hold now. Raises what `ask` raises."""

        def ask(store: RejectionStore) -> EventPlace:
            number, at = last_read(store)
            return EventPlace(store.database.identity, number, at)

        return await self._desk.ask(ask)

    async def after(self, place: EventPlace) -> EventBatch:
        """The events behind a place that are there. Raises Problem, BuddyError."""
        latest, kept = self._place, self._kept
        if latest is None:
            return EventBatch([], place)
        if latest.identity == place.identity:
            if place.number == latest.number:
                return EventBatch([], place)
            if kept and kept[0].place.number - 1 <= place.number < latest.number:
                newer = takewhile(lambda e: e.place.number > place.number, reversed(kept))
                return EventBatch(list(newer)[::-1], latest)
        return await self._desk.ask(lambda store: read_events(store, place))

    async def news(self, place: EventPlace) -> None:
        """Wait until there is an event behind a place; not for long, if there is none."""
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        latest, seconds = self._place, _QUIET_SECONDS
        if self.has_ended:
            return
        if latest is None or latest.identity != place.identity:
            seconds = _POLL_SECONDS
        elif latest.number > place.number:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    async def end_at(self, stop: asyncio.Event) -> None:
        """End all streams when this is set: their clients come back to another process."""
        await stop.wait()
        self.has_ended = True
        self._news.set()

    async def close(self) -> None:
        """Stop following. Requests must have ended."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _run(self) -> None:
        reads = True
        try:
            while self._streams:
                try:
                    batch = await asyncio.to_thread(self._read, self._place)
                except BuddyError as error:  # a desk replaces the store, or there is none yet
                    if reads:
                        _log.warning("rejections_not_followed", error=str(error))
                    reads = False
                    await asyncio.sleep(_POLL_SECONDS)
                    continue
                reads = True
                self._take(batch)
                if not batch.more:
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._running = None
            self._place = None
            self._kept.clear()

    def _read(self, place: EventPlace | None) -> EventBatch:
        """What is new in the store, which need not be up to date. Blocking."""
        access = self._desk.access
        store = RejectionStore(access.directory, access.names, read_only=True)
        try:
            if place is None or place.identity != store.database.identity:
                number, at = last_read(store)
                return EventBatch([], EventPlace(store.database.identity, number, at))
            return read_events(store, place)
        finally:
            store.close()

    def _take(self, batch: EventBatch) -> None:
        if batch.place == self._place:
            return
        latest = self._place
        is_next = latest is not None and batch.place.identity == latest.identity
        if not is_next or (
            latest and batch.events and batch.events[0].place.number <= latest.number
        ):
            self._kept.clear()
        self._kept.extend(batch.events)
        self._place = batch.place
        self._news.set()
        self._news = asyncio.Event()


class RejectionStreamer:
    """The endpoint that streams."""

    def __init__(self, follower: RejectionFollower, streams: EventStreams) -> None:
        self._follower = follower
        self._streams = streams

    async def get(self, request: Request) -> Response:
        """Events from now on, or from behind `Last-Event-ID`."""
        values = parameters(request, ("entity", "code"))
        filter_of(values, 0)  # its problems
        text = request.headers.get("last-event-id")
        place = None if text is None else decode_place(text)
        if text is not None and place is None:
            raise malformed("Last-Event-ID", "must be the id of an event")
        self._streams.check_room()
        if place is None:
            place = await self._follower.now()
        return self._streams.answer(request, self._events(place, values))

    async def _events(self, place: EventPlace, values: Mapping[str, Any]) -> AsyncIterator[bytes]:
        entity, code = values.get("entity"), values.get("code")
        with self._follower.joined():
            yield b"retry: %d\nid: %b\n\n" % (_RETRY_MS, place.encode().encode())
            while not self._follower.has_ended:
                try:
                    batch = await self._follower.after(place)
                except (Problem, BuddyError):  # the client comes back, and is told then
                    return
                place = batch.place
                for event in batch.events:
                    if entity in (None, event.entity) and (code is None or code in event.codes):
                        yield event.content
                if not batch.events and not batch.more:
                    await self._follower.news(place)
                    yield b":\nid: %b\n\n" % place.encode().encode()
