"""Requests and announcements that a topic loses at its end, as after a loss of power."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Truncate
from tests.contract.sink_kit import Sink
from tests.kafka_server import KafkaServer
from tests.unit.rows_kit import user
from worker.errors import BrokerUnavailable
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def kafka_address(kafka_server: KafkaServer) -> str:
    return kafka_server.address


async def answered(sink: Sink, request_id: str) -> None:
    """Until it is finished. A topic of announcements that was truncated is read again."""
    while (await sink.answer("finished")).request_id != request_id:
        pass


async def a_loss_is_told_once(sink: Sink, place: Partition) -> None:
    """The next session answers, and says what is lost; the one after it says nothing."""
    with capture_logs() as logs:
        async with sink.running():
            await ask(sink, "new")
            await answered(sink, "new")
            lost = f"{place.topic}/{place.number} has lost its last messages"
            assert any(lost in why for why in sink.reasons())
        async with sink.running():
            await ask(sink, "last")
            await answered(sink, "last")
    assert told(logs) == [place.topic], "once"


async def exported(sink: Sink, *requests: str) -> None:
    """Have the sink answer these requests, and read the answers."""
    for request in requests:
        await sink.export(request, formats=("csv",))


def told(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [entry["topic"] for entry in logs if entry["event"] == "internal_truncated"]


async def ask(sink: Sink, request_id: str) -> None:
    """Ask for an export, later than for those before, also a broker that is just coming back."""
    sink.clock.now += 1_000
    for _ in range(20):
        try:
            await sink.export_request(request_id, formats=("csv",))
        except BrokerUnavailable:
            continue
        return
    raise AssertionError("the broker takes no request")


@pytest.mark.parametrize("fresh", [1, 3, 5], ids=["shorter", "as long", "longer"])
async def test_requests_at_the_offsets_of_lost_ones_are_answered(
    sink: Sink, truncate: Truncate, fresh: int
) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await exported(sink, "old0", "old1", "old2")
    place = Partition(sink.names.export_requests, 0)
    await truncate(place, 0)
    for number in range(fresh):
        await ask(sink, f"new{number}")
    with capture_logs() as logs:
        async with sink.running():
            for number in range(fresh):
                await answered(sink, f"new{number}")
            assert any("export-requests/0 has lost its last" in why for why in sink.reasons())
        async with sink.running():
            await ask(sink, "last")
            await answered(sink, "last")
    assert told(logs) == [place.topic], "once"
    assert len(await sink.announced()) == 3 + fresh + 1


@pytest.mark.parametrize("kind", ["embedded"])  # Kafka would have to be restarted
async def test_requests_that_are_lost_under_a_sink(sink: Sink, truncate: Truncate) -> None:
    await sink.accept("users", user(1))
    with capture_logs() as logs:
        async with sink.running():
            await exported(sink, "old0", "old1", "old2")
            await truncate(Partition(sink.names.export_requests, 0), 0)
            await ask(sink, "new")
            await answered(sink, "new")
    assert told(logs) == [sink.names.export_requests]
    assert [said.request_id for said in await sink.announced()] == ["old0", "old1", "old2", "new"]


async def test_lost_announcements_are_told(sink: Sink, truncate: Truncate) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await exported(sink, "old0", "old1", "old2")
    place = Partition(sink.names.exports, 0)
    await truncate(place, (await sink.broker.spans([place]))[place].end - 2)
    await a_loss_is_told_once(sink, place)


async def test_a_mark_that_is_not_the_last_is_told_and_repeats_nothing(
    sink: Sink, truncate: Truncate
) -> None:
    await sink.accept("users", user(1))
    place = Partition(sink.names.schedules, 0)
    async with sink.running():
        await exported(sink, "old0")
    end = (await sink.broker.spans([place]))[place].end
    async with sink.running():
        sink.clock.now += 1_000
        await exported(sink, "old1")
    await truncate(place, end)
    await a_loss_is_told_once(sink, place)
    assert [s.request_id for s in await sink.announced()] == ["old0", "old1", "new", "last"]
