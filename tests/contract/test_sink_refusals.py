"""What hinders a sink is told and waited out: refusals, missing rights, unusable directories."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another, DeleteTopic
from tests.contract.helpers import PATIENCE, add_partitions, eventually
from tests.contract.sink_kit import PARTITIONS, Sink, embedded_only, holds
from worker.brokers.contract import Broker, Committer, Reader
from worker.core.topics import wanted
from worker.errors import BrokerUnavailable, ConfigurationError, MessageRefused
from worker.exports.places.place import NoSealError
from worker.sink import leader, service, upkeep
from worker.sink.requests import ExportRequest, encode_request
from worker.stream import Message, ProducerRecord


@pytest.fixture
def sink(sink: Sink) -> Sink:
    sink.let_time_pass()
    return sink


kafka_only = pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])


class Refusing:
    """A broker that refuses some of what it is asked, while `reason` is set."""

    def __init__(self, broker: Broker, what: str, topic: str = "") -> None:
        self.reason: Exception | None = None
        self.refused = 0
        self._broker = broker
        self._what = what
        self._topic = topic

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._broker, name)
        if name != self._what:
            return found

        async def refuse(*args: Any, **more: Any) -> Any:
            self._refuse()
            return await found(*args, **more)

        return refuse

    async def committer(self, *args: str) -> Committer:
        committer = await self._broker.committer(*args)
        if self._what == "commit":
            commit = committer.commit

            async def refuse(*args: Any) -> list[tuple[int, int]]:
                self._refuse()
                return await commit(*args)

            committer.commit = refuse  # type: ignore[assignment, method-assign]  # a fault
        return committer

    def reader(self, *, uncommitted: bool = False) -> Reader:
        reader = self._broker.reader(uncommitted=uncommitted)
        if self._what != "reader":
            return reader
        read, assign = reader.read, reader.assign
        topics: set[str] = set()

        def note(positions: Any) -> None:
            topics.update(place.topic for place in positions)
            assign(positions)

        async def refuse(*args: Any, **more: Any) -> list[Message]:
            if self._topic in topics:
                self._refuse()
            return await read(*args, **more)

        reader.assign, reader.read = note, refuse  # type: ignore[method-assign]  # a fault
        return reader

    def _refuse(self) -> None:
        if self.reason is not None:
            self.refused += 1
            raise self.reason


DENIED = BrokerUnavailable("Kafka does not allow to read t: topic authorization failed")
LOGIN = ConfigurationError("Kafka refuses the login of buddy: wrong password")
TOO_LARGE = MessageRefused("a message of 358 bytes is too large for t.exports, which takes 300")
READS = [("reader", "accepted", "broker"), ("spans", "", "broker")]
WRITES = ("commit", "", "requests and schedules")
ASKS = ("reader", "export_requests", "requests and schedules")


@embedded_only
@pytest.mark.parametrize(
    ("what", "topic", "hindered", "reason"),
    [
        *((*each, reason) for each in (*READS, WRITES, ASKS) for reason in (DENIED, LOGIN)),
        (*WRITES, TOO_LARGE),
    ],
)
async def test_what_keeps_it_from_its_work_is_told_and_waited_out(
    sink: Sink,
    what: str,
    topic: str,
    hindered: str,
    reason: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.sink.leader._STEADY_SESSION_MS", 500)
    names = sink.names
    name = {"accepted": names.accepted("users"), "export_requests": names.export_requests}
    broker = Refusing(sink.broker, what, name.get(topic, ""))
    async with sink.running(broker):
        await sink.export("before", formats=("csv",))
        assert sink.reasons() == []
        broker.reason = reason
        await sink.export_request("after", formats=("csv",))
        expected = f"sink: {hindered}: {reason}"
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
        broker.reason = None
        assert (await sink.answer("finished")).request_id == "after"
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)


@kafka_only
async def test_partitions_that_requests_and_answers_were_given_hide_nothing(
    sink: Sink, another: Another, kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "_LOOK_MS", 50)
    await add_partitions(sink.broker, kafka_address, sink.names.exports, 3)
    async with sink.running():
        await sink.export("a", formats=("csv",))
        await add_partitions(sink.broker, kafka_address, sink.names.export_requests, 3)
        sender = await another()  # one that knows the new ones
        for partition in (2, 0):
            key, value = encode_request(ExportRequest(f"in-{partition}", formats=("csv",)))
            topic = sink.names.export_requests
            await sender.publish([ProducerRecord(topic, key, value, partition=partition)])
            assert (await sink.answer("finished")).request_id == f"in-{partition}"


@embedded_only
async def test_exports_that_cannot_be_written_are_told_before_one_is_due(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "AGAIN_MS", 20)
    sink.exports.parent.mkdir(exist_ok=True)
    sink.exports.touch()
    expected = f"sink: exports: cannot use the exports in {sink.exports}: Not a"
    async with sink.running():
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
        sink.exports.unlink()
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)


@embedded_only
@pytest.mark.parametrize("room", ["spool", "snapshots"])
async def test_a_file_where_exports_need_room_is_named(
    sink: Sink, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_LOOK_AT_ROOMS_SECONDS", 0.02)
    path = sink.store / room
    expected = f"sink: spool: {path} is in the way of a directory: move it away"
    async with sink.running():
        await eventually(lambda: asyncio.sleep(0, path.is_dir()), bool)
        path.rename(path.with_name("aside"))
        path.touch()
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
        await sink.ask(ExportRequest("a", formats=("csv",)))
        assert str(path) in str((await sink.answer("failed")).error)
        path.unlink()
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)


@embedded_only
async def test_a_damaged_seal_ends_no_start_and_is_told(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "s3://bucket/.seals/id.json is no seal"
    monkeypatch.setattr(sink.place, "sweep", Mock(side_effect=NoSealError(line)))
    async with sink.running():
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(f"sink: exports: {line}"))
        assert (await sink.export("a", formats=("csv",))).status == "finished"


@pytest.mark.parametrize("missing", ["progress", "feedback", "exports", "schedules"])
async def test_an_idle_sink_tells_of_a_topic_that_exports_need_and_that_is_missing(
    sink: Sink, remove: DeleteTopic, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(service, "_LOOK_AT_TOPICS_SECONDS", 0.1)
    names = sink.names
    topic = names.input("feedback") if missing == "feedback" else getattr(names, missing)
    expected = f"sink: topics: topic {topic} is missing: run 'buddy topics create'"
    with capture_logs() as logs:
        async with sink.running():
            await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)
            await remove(topic)
            await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
            made = wanted(names, PARTITIONS, 1024 * 1024)
            await sink.broker.create([made[topic]])
            await eventually(lambda: asyncio.sleep(0, sink.reasons()), lacks("topics: "))
    assert [e["topic"] for e in logs if e["event"] == "topic_missing"] == [topic]


def lacks(part: str) -> Callable[[list[str]], bool]:
    return lambda reasons: not any(part in reason for reason in reasons)


@embedded_only
async def test_an_idle_sink_tells_that_the_exports_have_gone(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "AGAIN_MS", 20)
    monkeypatch.setattr(upkeep, "CHECK_MS", 20)
    expected = f"sink: exports: {sink.exports} was replaced or unmounted while in use"
    checked, loop, real = asyncio.Event(), asyncio.get_running_loop(), sink.place.check

    def check() -> None:
        real()
        loop.call_soon_threadsafe(checked.set)

    monkeypatch.setattr(sink.place, "check", check)
    async with sink.running():
        await asyncio.wait_for(checked.wait(), PATIENCE)
        aside = sink.exports.rename(sink.exports.with_name("aside"))
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
        aside.rename(sink.exports)
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)


@embedded_only
async def test_without_the_right_to_read_progress_it_tries_ever_more_seldom(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Refusing(sink.broker, "reader", sink.names.progress)
    broker.reason = DENIED
    await sink.send("users", 1)
    await sink.judge(0, {"users": 1})
    waits: list[float] = []

    async def soon(stop: asyncio.Event, seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr("worker.sink.leader.wait", soon)
    async with sink.running(broker):
        await sink.ask(ExportRequest("a", formats=("csv",)))
        await eventually(lambda: asyncio.sleep(0, len(waits)), lambda count: count >= 8)
        broker.reason = None
        assert (await sink.answer("finished")).request_id == "a"
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)
    assert waits[0] <= 1.0
    assert 10.0 <= waits[7] <= 20.0


@embedded_only
async def test_a_refused_election_is_told_and_waited_out(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[Exception] = []

    async def join(*args: Any) -> Any:
        member = await real(*args)
        assignment = member.assignment

        async def ask() -> frozenset[int]:
            if refused:
                raise refused[0]
            return frozenset(await assignment())

        member.assignment = ask  # type: ignore[method-assign]  # a fault
        return member

    real = sink.broker.join
    monkeypatch.setattr(sink.broker, "join", join)
    async with sink.running():
        await sink.export("before", formats=("csv",))
        refused.append(LOGIN)
        expected = f"sink: election: {LOGIN}"
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
        refused.clear()
        await sink.export("after", formats=("csv",))
        await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)
