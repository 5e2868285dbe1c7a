"""When the process of the API is said to hang, and when to go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from worker.cli.api_process import hear
from worker.clock import Clock
from worker.ops.health import HealthLimits, ServiceHealth


class Heard:
    """The output of an API, and what is made of it. Time passes only by `freeze`."""

    def __init__(self) -> None:
        self.said = asyncio.StreamReader()
        self._health = ServiceHealth("http", HealthLimits(), Clock().steady())
        self._frozen = 0.0

    @property
    def reasons(self) -> list[str]:
        return self._health.reasons(Clock().steady())

    @asynccontextmanager
    async def hearing(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        task = asyncio.create_task(hear(self.said, self._health, Clock()))
        loop.time = lambda: began + self._frozen  # type: ignore[method-assign]
        try:
            self.said.feed_data(b"\n")
            await _turn()
            assert self.reasons == []
            yield
        finally:
            del loop.time
            self.said.feed_eof()
            await task

    async def freeze(self, seconds: float) -> None:
        """Let so much time pass in which this process does not run."""
        self._frozen += seconds
        await _turn()


async def _turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_api_does_not_hang_because_this_process_was_frozen() -> None:
    heard = Heard()
    with capture_logs() as logs:
        async with heard.hearing():
            await heard.freeze(1_000)
            assert heard.reasons == []
            heard.said.feed_data(b"\n")
            await heard.freeze(1_000)
            assert heard.reasons == []
    assert logs == []


async def test_an_api_that_hangs_is_told_until_it_goes_on() -> None:
    heard = Heard()
    with capture_logs() as logs:
        async with heard.hearing():
            for _ in range(25):
                await heard.freeze(1)
            assert heard.reasons != []
            heard.said.feed_data(b"\n")
            await _turn()
            assert heard.reasons == []
    assert [(one["event"], one["log_level"]) for one in logs] == [
        ("http_hangs", "error"),
        ("http_answers", "info"),
    ]
