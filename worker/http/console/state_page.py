"""The state of the services: workers, tasks, sinks, schedules, and what hinders them."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from worker.http.console.incident_rows import incidents_of, told
from worker.http.console.pages import PageRenderer
from worker.http.console.sampler import StatusSampler
from worker.http.desk_reader import DeskReader
from worker.http.health import HealthSource
from worker.http.rejections import now_ms
from worker.ops.health import Readiness


class StatePage:
    """The page. It shows the latest sample of the status."""

    def __init__(
        self, pages: PageRenderer, sampler: StatusSampler, desk: DeskReader, health: HealthSource
    ) -> None:
        self._pages = pages
        self._sampler = sampler
        self._desk = desk
        self._health = health

    async def get(self, request: Request) -> Response:
        """The page."""
        await self._sampler.first()
        ready = await self._health.ask("/ready")
        live = await self._health.ask("/live")
        now = now_ms()
        incidents, trouble = await told(self._desk, lambda store: incidents_of(store, now))
        # A process that does not answer stands among the reasons already.
        says_why = live.status != 200 and live.kind.startswith("text/plain")
        return self._pages.page(
            request,
            "state.html",
            found=self._sampler.status,
            failure=self._sampler.failure,
            ready=msgspec.json.decode(ready.content, type=Readiness),
            incidents=incidents.open if incidents else [],
            desk_trouble=trouble,
            stalled=live.content.decode(errors="replace") if says_why else None,
        )
