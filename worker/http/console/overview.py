"""The first page: what comes in, what becomes of it, and what waits; live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.desk import queries
from worker.desk.buckets import WIDTHS_MS
from worker.desk.queries import Filter, RejectionListed
from worker.desk.store import RejectionStore
from worker.http.console import charts
from worker.http.console.history import COLUMNS
from worker.http.console.incident_rows import Incidents, incidents_of, told
from worker.http.console.pages import HEADERS, PageRenderer, event
from worker.http.console.sampler import StatusSampler
from worker.http.console.tiles import tiles
from worker.http.desk_reader import DeskReader
from worker.http.event_streams import EventStreams
from worker.http.guard import needs
from worker.http.parameters import caller_of
from worker.http.rejections import now_ms

_HOUR_MS: Final = WIDTHS_MS[1]
_MOST_CODES: Final = 8
_LATEST: Final = 8
_SILENCE_SECONDS: Final = 15.0


class CodeRow(NamedTuple):
    """How often records of the last hour had a code, by minute."""

    code: str
    fields: list[str]
    records: int
    open: int
    peak: int
    """The most in a minute."""
    bars: str


class Rejections(NamedTuple):
    """What the desk knows of the last hour."""

    incidents: Incidents
    records: int
    open: int
    """Of all times."""
    codes: list[CodeRow]
    latest: list[RejectionListed]


class Overview:
    """The page and its events. The live part is rendered once for all who look."""

    def __init__(
        self, pages: PageRenderer, sampler: StatusSampler, desk: DeskReader, streams: EventStreams
    ) -> None:
        self._pages = pages
        self._sampler = sampler
        self._desk = desk
        self._streams = streams
        self._rendered = (-1, "")
        self._rendering = asyncio.Lock()
        self._watch = needs("watch", self._get)

    async def get(self, request: Request) -> Response:
        """The page."""
        roles = caller_of(request).roles
        if "watch" not in roles and "fetch" in roles:
            return RedirectResponse("/exports", 303, HEADERS)
        return await self._watch(request)

    async def _get(self, request: Request) -> Response:
        await self._sampler.first()
        return self._pages.page(request, "overview.html", live=await self._live())

    async def stream(self, request: Request) -> Response:
        """The live part as server-sent events, after each sample."""

        async def events() -> AsyncIterator[bytes]:
            seen = -1
            while not self._sampler.has_ended:
                if self._sampler.number > seen:
                    seen = self._sampler.number
                    yield event("live", await self._live())
                    continue
                try:
                    async with asyncio.timeout(_SILENCE_SECONDS):
                        await self._sampler.after(seen)
                except TimeoutError:
                    yield b": nothing new\n\n"

        return self._streams.answer(request, events())

    async def _live(self) -> str:
        async with self._rendering:
            number = self._sampler.number
            if self._rendered[0] != number:
                self._rendered = (number, await self._render())
            return self._rendered[1]

    async def _render(self) -> str:
        now = now_ms()
        rejections, trouble = await told(self._desk, lambda store: rejections_of(store, now))
        window = self._sampler.history.window(now / 1_000)
        return self._pages.fragment(
            "live.html",
            tiles=tiles(window),
            window=window,
            status=self._sampler.status,
            failure=self._sampler.failure,
            rejections=rejections,
            incidents=rejections.incidents if rejections else Incidents([], []),
            desk_trouble=trouble,
        )


def rejections_of(store: RejectionStore, now: int) -> Rejections:
    """What the overview shows of the store. Blocking."""
    minute = WIDTHS_MS[0]
    until = (now // minute + 1) * minute
    since = until - _HOUR_MS
    found = queries.summary(store, Filter(since=since, until=until))
    totals: dict[str, list[int]] = {}
    fields: dict[str, list[str]] = {}
    for kind, counted in found.kinds:
        total = totals.setdefault(kind.code, [0, 0])
        total[0] += counted.records
        total[1] += counted.open
        name = f"{kind.entity}.{kind.field}" if kind.field else kind.entity
        fields.setdefault(kind.code, []).append(name)
    codes = sorted(totals, key=lambda code: (-totals[code][0], code))[:_MOST_CODES]
    series = {
        code: queries.over_time(store, Filter(code=code, since=since, until=until), COLUMNS)
        for code in codes
    }
    top = charts.top_of(*series.values())
    rows = []
    for code in codes:
        records, open_ = totals[code]
        bars = charts.bars(series[code], top)
        rows.append(CodeRow(code, fields[code], records, open_, max(series[code]), bars))
    return Rejections(
        incidents=incidents_of(store, now),
        records=found.records,
        open=queries.summary(store, Filter()).open,
        codes=rows,
        latest=queries.listed(store, Filter(), _LATEST, everything=False),
    )
