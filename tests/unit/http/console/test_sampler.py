"""Samples of the status: what is kept when the broker is away, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from structlog.testing import capture_logs

from tests.unit.status.status_kit import answers
from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable
from worker.http.console.sampler import StatusSampler
from worker.http.health import HealthAnswer
from worker.status.report import report
from worker.status.whole import WholeStatus

STATUS = WholeStatus(report(answers(), {}), {}, None, [])


class Silent:
    """The health of a process without metrics."""

    async def ask(self, path: str) -> HealthAnswer:
        return HealthAnswer(503, "text/plain", b"")


class Looks:
    """Answers one look after another; an exception is raised."""

    def __init__(self, *found: WholeStatus | Exception) -> None:
        self._found = list(found)

    async def __call__(self, _broker: Broker) -> WholeStatus:
        found = self._found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def sampler(*found: WholeStatus | Exception) -> StatusSampler:
    broker: Any = None
    return StatusSampler(broker, Looks(*found), Silent())


@asynccontextmanager
async def running(one: StatusSampler) -> AsyncIterator[None]:
    task = asyncio.create_task(one.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_first_look_is_taken_at_once_and_told() -> None:
    one = sampler(STATUS)
    async with running(one):
        await one.first()
    assert (one.number, one.status, one.failure) == (1, STATUS, None)


async def test_an_outage_is_told_once_and_what_was_known_stays() -> None:
    away = BrokerUnavailable("the broker is away")
    one = sampler(STATUS, away, TimeoutError(), STATUS)
    with capture_logs() as log:
        await one._sample()
        await one._sample()
        assert (one.status, one.failure) == (STATUS, "the broker is away")
        await one._sample()
        assert one.failure == "the broker has not answered within 30 s"
        assert [entry["event"] for entry in log] == ["status_not_read"]
        await one._sample()
    assert one.failure is None


async def test_the_end_wakes_those_who_wait() -> None:
    one, stop = sampler(), asyncio.Event()
    stop.set()
    waiting = asyncio.create_task(one.after(0))
    await one.end_at(stop)
    await waiting
    assert one.has_ended
