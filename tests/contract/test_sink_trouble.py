"""A sink and garbage in its topics, topics created anew, damage, clocks and open transactions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import DeleteTopic
from tests.contract.helpers import PATIENCE, damage_embedded, eventually
from tests.contract.sink_kit import PARTITIONS, Sink, csv_rows, embedded_only, fill, holds
from tests.unit.rows_kit import user, uuid
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import wanted
from worker.errors import StateLost
from worker.sink.store import consume
from worker.stream import OffsetRange, Partition, ProducerRecord


@pytest.fixture
def sink(sink: Sink) -> Sink:
    sink.let_time_pass()
    return sink


# --- garbage --------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"\xff\x00",
    b"{",
    b"[]",
    b"7",
    b"[" * 50_000,
    b'{"next":{"users":"x"},"judged":{}}',
    b'{"next":{"users":-5},"judged":{"users":99999999999999999999999}}',
    b'{"next":{"users":1e999},"judged":null}',
]


async def test_garbage_in_progress_is_skipped_counted_and_named(sink: Sink) -> None:
    topic = sink.names.progress
    await sink.send("users", 3)
    await sink.judge(0, {"users": 3})
    forged = b'{"next":{"users":3},"judged":{"users":3}}'
    junk = [ProducerRecord(topic, b"0", value, partition=0) for value in GARBAGE]
    junk += [ProducerRecord(topic, key, forged, partition=1) for key in (b"", b"0", b"\xff")]
    await sink.broker.publish(junk)
    with capture_logs() as logs:
        async with sink.running():
            said = await sink.export("a", formats=("csv",))
            await sink.export("b", formats=("csv",))
    assert said.complete is True
    told = [entry for entry in logs if entry["event"] == "unreadable_internal"]
    assert {entry["topic"] for entry in told} == {topic}
    assert sum(entry["count"] for entry in told) == len(junk), "each once, however often it is read"
    assert all(isinstance(entry["offset"], int) for entry in told)


async def test_progress_from_before_an_input_was_truncated_judges_nothing_and_is_no_garbage(
    sink: Sink,
) -> None:
    sink.patience = 0.3
    await sink.send("users", 3)
    await sink.judge(0, {"users": 9})
    with capture_logs() as logs:
        async with sink.running():
            before = await sink.export("a", formats=("csv",))
            await sink.judge(0, {"users": 3})
            after = await sink.export("b", formats=("csv",))
    assert (before.pending, after.complete) == ({"users": {0: 3}}, True)
    assert not [entry for entry in logs if entry["event"] == "unreadable_internal"]


async def test_progress_under_the_key_of_another_task_judges_nothing(sink: Sink) -> None:
    sink.patience = 0.3
    await sink.send("users", 3, partition=1)
    forged = b'{"next":{"users":3},"judged":{"users":3}}'
    await sink.broker.publish([ProducerRecord(sink.names.progress, b"0", forged, partition=1)])
    async with sink.running():
        said = await sink.export("a", formats=("csv",))
    assert said.pending == {"users": {1: 3}}


async def test_garbage_in_the_public_topics_ends_nothing(sink: Sink) -> None:
    chance = random.Random(3)
    values = [*GARBAGE, *(chance.randbytes(chance.randrange(40)) for _ in range(10))]
    requests = [ProducerRecord(sink.names.export_requests, None, value) for value in values]
    standings = [
        ProducerRecord(sink.names.schedules, key, value, partition=0)
        for value in [*values, b'{"until":"9999-12-31T23:59:59Z"}', b'{"until":"2024-01-01"}']
        for key in (b"monthly", b"\xff")
    ]
    answers = [ProducerRecord(sink.names.exports, b"x", value) for value in values]
    await sink.broker.publish([*requests, *standings, *answers])
    async with sink.running():
        await sink.export_request("good", formats=("csv",))
        finished: Sequence[Any] = ()
        async with asyncio.timeout(PATIENCE):
            while not finished:
                finished = await sink.announced()
                await asyncio.sleep(0.05)
    failed = await sink.announced("failed")
    assert len(failed) == len(values)
    assert all("\n" not in str(said.error) for said in failed)
    assert [said.request_id for said in finished] == ["good"]


# --- topics created anew --------------------------------------------------------------------------


async def create_anew(
    sink: Sink, remove: DeleteTopic, topic: str, partitions: int = PARTITIONS
) -> None:
    await remove(topic)
    made = wanted(sink.names, partitions, 1024 * 1024)[topic]
    await eventually(lambda: sink.broker.create([made]), bool)


@pytest.mark.parametrize(
    ("running", "records", "partitions"),
    [
        pytest.param(False, 30, PARTITIONS, id="while it is away, more"),
        pytest.param(True, 2, PARTITIONS, id="under a sink, fewer"),
        pytest.param(True, 30, PARTITIONS, id="under a sink, more"),
        pytest.param(True, 5, PARTITIONS + 1, id="under a sink, other partitions"),
    ],
)
async def test_an_accepted_topic_that_was_created_anew_is_read_from_its_start(
    sink: Sink,
    remove: DeleteTopic,
    monkeypatch: pytest.MonkeyPatch,
    records: int,
    partitions: int,
    *,
    running: bool,
) -> None:
    monkeypatch.setattr(consume, "_LOOK_EVERY_MS", 300)
    await sink.accept("users", *(user(n) for n in range(10)))
    topic = sink.names.accepted("users")

    async def anew() -> None:
        await create_anew(sink, remove, topic, partitions)
        await sink.accept("users", *(user(100 + n) for n in range(records)))

    with capture_logs() as logs:
        async with sink.running():
            await sink.export("before", formats=("csv",))
            if running:
                await anew()
                await eventually(lambda: asyncio.sleep(0, [e["event"] for e in logs]), _rebuilt)
        if not running:
            await anew()
        async with sink.running():
            said = await sink.export("after", formats=("csv",))
    rebuilt = [entry for entry in logs if entry["event"] == "sink_store_rebuilt"]
    assert len(rebuilt) == 1
    assert topic in rebuilt[0]["reason"]
    assert [entry["topic"] for entry in logs if entry["event"] == "accepted_recreated"] == [topic]
    value = sink.metrics.registry.get_sample_value
    assert value("buddy_accepted_recreated_total") == 1
    reason = f"topic {topic} was created anew: its rows are gone"
    assert any(reason in one for one in sink.reasons())
    rows = csv_rows(sink.exports / str(said.directory), "users")
    assert [row["id"] for row in rows] == [uuid(100 + n) for n in range(records)]


def _rebuilt(events: list[str]) -> bool:
    return "sink_store_rebuilt" in events


async def test_a_cut_does_not_believe_offsets_in_an_input_that_was_there_before(
    sink: Sink, remove: DeleteTopic
) -> None:
    sink.patience = 0.5
    await sink.send("users", 5)
    topic = sink.names.input("users")
    (before,) = (await sink.broker.identities([topic])).values()
    saved = b'{"next":{"users":5},"judged":{"users":5},"topics":{"users":"%b"}}' % before.encode()
    await sink.broker.publish([ProducerRecord(sink.names.progress, b"0", saved, partition=0)])
    await create_anew(sink, remove, topic)
    await sink.send("users", 3)
    async with sink.running():
        said = await sink.export("a", formats=("csv",))
    assert said.pending == {"users": {0: 3}}


# --- damage ---------------------------------------------------------------------------------------


async def test_a_store_that_is_damaged_under_a_sink_is_rebuilt_and_the_export_is_made(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(sink)
    async with sink.running():
        await sink.export("before", formats=("csv",))
    real = consume.Consumer.hold
    spoiled: list[object] = []

    async def spoil(self: consume.Consumer, *args: Any) -> Any:
        if not spoiled:
            store = self._store
            spoiled.append(store)
            with suppress(StateLost), store.database():
                raise Exception("Corruption: block checksum mismatch")  # noqa: TRY002 -- as rocksdict does
        return await real(self, *args)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(consume.Consumer, "hold", spoil)
        async with sink.running():
            said = await sink.export("after", formats=("csv",))
    assert (said.counts or {})["users"] == 4
    assert [e["event"] for e in logs].count("sink_store_rebuilt") == 1


@embedded_only
async def test_an_export_that_needs_damaged_progress_fails_and_names_it(sink: Sink) -> None:
    await sink.send("users", 3)
    await sink.judge(0, {"users": 3})
    assert isinstance(sink.broker, EmbeddedBroker)
    await damage_embedded(sink.broker, Partition(sink.names.progress, 0))
    async with sink.running():
        await sink.export_request("a", formats=("csv",))
        said = await sink.answer("failed")
    assert f"{sink.names.progress}/0 is damaged from offset 0" in (said.error or "")


@embedded_only
async def test_a_clock_that_jumps_neither_stalls_nor_ends_it(sink: Sink) -> None:
    day = 24 * 3600 * 1000
    await fill(sink)
    async with sink.running():
        for number, step in enumerate((-day, 9 * day, -30 * day, 400 * day, -400 * day)):
            sink.clock.now += step
            said = await sink.export(f"e{number}", formats=("csv",))
            assert (said.counts or {})["users"] == 4
            assert [line for line in sink.reasons() if "foreign messages" not in line] == []
    place = Partition(sink.names.export_requests, 0)
    assert (await sink.broker.spans([place]))[place].end >= 5


class BehindATransaction:
    """A broker where somebody's transaction stays open at the end of a topic, if one is named."""

    def __init__(self, broker: Broker) -> None:
        self.topic = ""
        self._broker = broker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        spans = await self._broker.spans(partitions, uncommitted=uncommitted)
        return {
            place: OffsetRange(
                span.start, span.end + 3 * (uncommitted and place.topic == self.topic)
            )
            for place, span in spans.items()
        }


@embedded_only
@pytest.mark.parametrize("what", ["accepted.users", "export-requests", "exports"])
async def test_what_is_behind_an_open_transaction_is_told(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("worker.sink.store.consume._MEASURE_EVERY_MS", 50)
    monkeypatch.setattr("worker.brokers.transactions._OPEN_MS", 300)
    broker = BehindATransaction(sink.broker)
    topic = f"{sink.names.prefix}.{what}"
    with capture_logs() as logs:
        async with sink.running(broker):
            await sink.export("before", formats=("csv",))
            assert sink.reasons() == []
            broker.topic = topic
            expected = f"sink: transactions: 3 records of {topic}/0 are behind a transaction"
            await eventually(lambda: asyncio.sleep(0, sink.reasons()), holds(expected))
            broker.topic = ""
            await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: not found)
    told = [entry for entry in logs if entry["event"] == "accepted_blocked"]
    assert told
    assert (told[0]["topic"], told[0]["count"]) == (topic, 3)


@pytest.mark.parametrize("running", [False, True], ids=["while it is away", "under a sink"])
@pytest.mark.parametrize(
    "name", ["export-requests", "exports", "internal.schedules", "replays", "rejected.users"]
)
async def test_other_topics_of_the_sink_that_were_created_anew_are_told(
    sink: Sink, broker: Broker, remove: DeleteTopic, name: str, *, running: bool
) -> None:
    """Requests, announcements and how far schedules are go with their topics."""
    topic = f"{sink.names.prefix}.{name}"
    made = [made for made in wanted(sink.names, PARTITIONS, 1024).values() if made.name == topic]
    await broker.create(made)  # unless the sink needs it: then it is there

    async def create_anew() -> None:
        await remove(topic)
        await broker.create(made)

    async def told() -> bool:
        return any(f"topic {topic} was created anew" in reason for reason in sink.reasons())

    with capture_logs() as logs:
        async with sink.running():
            await sink.export("before", formats=("json",))
            if running:
                await create_anew()
                sink.clock.now += 5_001
                await eventually(told, bool)
                await sink.export("after", formats=("json",))
        if not running:
            await create_anew()
        async with sink.running():
            await eventually(told, bool)
            await sink.export("last", formats=("json",))
    event = "rejected_recreated" if name.startswith("rejected.") else "internal_recreated"
    assert [e["topic"] for e in logs if e["event"] == event] == [topic], "once"
