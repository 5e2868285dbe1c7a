"""Server-sent events: how many streams are open, and the answer that is one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from worker.http.metrics import HttpMetrics
from worker.http.problems import Problem

MOST_STREAMS: Final = 1_000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""No cache and no proxy may keep events."""


class EventStreams:
    """Counts the open streams of this process."""

    def __init__(self, metrics: HttpMetrics) -> None:
        self._metrics = metrics
        self._open = 0

    def check_room(self) -> None:
        """Raise Problem 429 if there are too many streams."""
        if self._open >= MOST_STREAMS:
            raise Problem(
                429,
                "too_many_streams",
                f"{MOST_STREAMS} streams are open: try again",
                headers={"Retry-After": "5"},
            )

    def answer(self, request: Request, events: AsyncIterator[bytes]) -> Response:
        """The stream of these events. It no longer counts as a request in progress."""
        self.check_room()
        release: Callable[[], None] = request.state.release
        release()
        return StreamingResponse(
            self._counted(events), headers=_HEADERS, media_type="text/event-stream"
        )

    async def _counted(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._count(1)
        try:
            async for event in events:
                yield event
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._open += change
        self._metrics.streams(self._open)
