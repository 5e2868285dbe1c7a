"""A sink whose embedded log is damaged where requests and schedules are kept."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.contract.helpers import damage_embedded, damage_embedded_entry
from tests.contract.sink_kit import Sink
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.stream import Partition, ProducerRecord


@pytest.fixture
def kind() -> str:
    return "embedded"


@pytest.fixture
def sink(sink: Sink) -> Sink:
    sink.let_time_pass()
    return sink


@pytest.mark.parametrize("name", ["export_requests", "schedules"])
async def test_what_was_skipped_is_told_and_counted(sink: Sink, broker: Broker, name: str) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(getattr(sink.names, name), 0)
    await broker.publish([ProducerRecord(place.topic, b"lost", b"{}")])
    await damage_embedded(broker, place)
    await broker.inspection.skip(await broker.inspection.find(place, 0))
    with capture_logs() as logs:
        async with sink.running():
            await sink.export("one", formats=("json",))
    told = [entry for entry in logs if entry["event"] == "internal_skipped"]
    assert [(entry["topic"], entry["count"]) for entry in told] == [(place.topic, 1)]
    assert sink.metrics.registry.get_sample_value("buddy_unreadable_internal_messages_total") == 1
    assert f"1 offsets of {place.topic}/0 were removed, or damaged and skipped" in " ".join(
        sink.reasons()
    )


async def test_damage_of_the_schedules_is_waited_out(sink: Sink, broker: Broker) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(sink.names.schedules, 0)
    await broker.publish([ProducerRecord(place.topic, b"lost", b"{}")])
    await damage_embedded(broker, place)
    with capture_logs() as logs:
        async with sink.running():
            async with asyncio.timeout(10):
                while not any(e["event"] == "export_waits" for e in logs):  # noqa: ASYNC110 -- a log
                    await asyncio.sleep(0.01)
            assert f"{place.topic}/0 is damaged" in " ".join(sink.reasons())
            await broker.inspection.skip(await broker.inspection.find(place, 0))
            await sink.export("one", formats=("json",))


@pytest.mark.parametrize("topic", ["accepted.feedback", "export-requests"])
async def test_an_entry_that_is_damaged_at_the_start_is_waited_out(
    sink: Sink, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(f"{sink.names.prefix}.{topic}", 0)
    await damage_embedded_entry(broker, place)
    async with sink.running():
        async with asyncio.timeout(10):
            while f"{topic}/0 is damaged" not in " ".join(sink.reasons()):  # noqa: ASYNC110 -- polled, as a probe does
                await asyncio.sleep(0.01)
        await broker.inspection.skip(await broker.inspection.find(place, None))
        await sink.export("one", formats=("json",))


async def test_an_export_that_damage_holds_up_says_where_and_what_to_do(
    sink: Sink, broker: Broker
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    sink.patience = 0.5
    place = Partition(sink.names.accepted("users"), 0)
    await broker.publish([ProducerRecord(place.topic, b"lost", b"{}", (), 0)])
    await damage_embedded(broker, place)
    async with sink.running():
        await sink.export_request("one", formats=("json",))
        said = await sink.answer("failed")
    line = f"1 messages of {place.topic}/0 are missing: {place.topic}/0 is damaged from offset 0"
    assert line in (said.error or "")
    assert f"'buddy log skip {place.topic}/0'" in (said.error or "")


async def test_skipped_announcements_are_told(sink: Sink, broker: Broker) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(sink.names.exports, 0)
    await broker.publish([ProducerRecord(place.topic, b"lost", b"{}")])
    await damage_embedded(broker, place)
    await broker.inspection.skip(await broker.inspection.find(place, 0))
    with capture_logs() as logs:
        async with sink.running():
            await sink.export("one", formats=("json",))
    told = [entry for entry in logs if entry["event"] == "log_skipped"]
    assert [(entry["topic"], entry["count"]) for entry in told] == [(place.topic, 1)]


async def test_a_clock_that_is_set_is_told_and_counted(sink: Sink) -> None:
    with capture_logs() as logs:
        async with sink.running():
            await sink.export("one", formats=("json",))
            sink.stepped = -3_600_000
            await sink.export("two", formats=("json",))
    (step,) = (entry["by_ms"] for entry in logs if entry["event"] == "clock_stepped")
    assert abs(step + 3_600_000) < 1_000
    assert sink.metrics.registry.get_sample_value("buddy_clock_steps_total") == 1
