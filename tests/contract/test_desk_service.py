"""The desk as a service: it follows the topics, others read beside it, and it waits out trouble."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import DeleteTopic, unique
from tests.contract.desk_kit import (
    CLOCK,
    DEADLINE,
    OPEN,
    PARTITIONS,
    Desk,
    MovedClock,
    Reports,
    served,
)
from tests.contract.helpers import eventually
from tests.unit.rows_kit import uuid
from worker.brokers.contract import Broker
from worker.core.topics import Names, wanted
from worker.core.violations import Code
from worker.desk import follow, queries, reading
from worker.desk import service as service_module
from worker.desk.database import FILE_NAME
from worker.desk.goal import goal, offsets_left
from worker.desk.queries import Filter
from worker.desk.service import StandInDesk
from worker.desk.store import RejectionStore
from worker.desk.webhook import Webhook
from worker.errors import BrokerUnavailable, StateError
from worker.stream import ProducerRecord

USERS = {"entity": "users", "what": "rejections"}
MESSAGES = "buddy_incident_webhook_messages_total"


@pytest.fixture
async def desk(broker: Broker, tmp_path: Path) -> Desk:
    names = Names(unique("desk"))
    await broker.create(wanted(names, PARTITIONS, 1024 * 1024).values())
    return Desk(broker, names, tmp_path / "desk")


async def beside(desk: Desk) -> tuple[int, int]:
    """Records and open ones, as another process sees them once the service has read everything."""
    target = await goal(desk.broker, desk.names, whole=False)
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                store = RejectionStore(desk.directory, desk.names, read_only=True)
            except StateError:  # not created yet
                await asyncio.sleep(0)
                continue
            try:
                if not offsets_left(store, target):
                    found = queries.summary(store, Filter())
                    return found.records, found.open
            finally:
                store.close()
            await asyncio.sleep(0.01)


async def test_another_process_reads_what_the_service_has_read(desk: Desk) -> None:
    reports = Reports()
    async with served(desk, reports):
        for count in range(1, 4):
            await desk.publish(
                *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(10))
            )
            assert await beside(desk) == (10 * count, 10 * count)
        await desk.publish(*(desk.row("users", uuid(n)) for n in range(4)))
        assert await beside(desk) == (30, 18)
        await reports.until(passes=reports.passes + 2)
        assert reports.value("buddy_desk_open_rejections", {"entity": "users"}) == 18
        assert reports.value("buddy_desk_oldest_open_timestamp_seconds", {"entity": "users"}) > 0
        assert reports.reasons() == []
    assert await desk.look() == (30, 18), "a command alone goes on where the service was"


async def test_a_store_in_use_is_waited_for_and_told(desk: Desk) -> None:
    holder = RejectionStore(desk.directory, desk.names)
    reports = Reports()
    async with served(desk, reports):
        await reports.until(waited=2)
        (reason,) = (r for r in reports.reasons() if "in use" in r)
        assert reason.startswith("desk: desk:")
        holder.close()
        await reports.until(passes=1)
        assert reports.reasons() == []


async def test_an_outage_is_waited_out_and_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports()
    real, failures = follow.found_topics, [2]

    async def fails(broker: Broker, names: Names) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise BrokerUnavailable("gone")
        return await real(broker, names)

    monkeypatch.setattr(follow, "found_topics", fails)
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    with capture_logs() as logs:
        async with served(desk, reports):
            await reports.until(waited=2)
            assert any("desk: broker: gone" in reason for reason in reports.reasons())
            assert await beside(desk) == (1, 1)
            await reports.until(passes=1)
            assert any("desk: broker: gone" in reason for reason in reports.reasons())
            await eventually(lambda: asyncio.sleep(0, reports.reasons()), lambda found: not found)
    assert [one["error"] for one in logs if one["event"] == "desk_waits"] == ["gone", "gone"]


async def test_a_stop_ends_a_long_reading(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With next to no share of the time it would wait for hours after its first batch."""
    monkeypatch.setattr(reading, "_BATCH", 1)
    await desk.publish(
        *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(50))
    )
    reports = Reports()
    read = asyncio.Event()
    monkeypatch.setattr(reports, "read", lambda _done, _total: read.set())
    async with served(desk, reports, share=1e-7):
        async with asyncio.timeout(DEADLINE):
            await read.wait()
    records, _ = await desk.look()
    assert (records, reports.passes) == (50, 0)


async def test_garbage_is_skipped_and_counted(desk: Desk) -> None:
    reports = Reports()
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    await desk.publish(ProducerRecord(desk.names.rejected("users"), b"k", b"no rejection"))
    with capture_logs() as logs:
        async with served(desk, reports):
            await reports.until(passes=1)
    assert reports.value("buddy_unreadable_internal_messages_total") == 1
    (line,) = (one for one in logs if one["event"] == "unreadable_rejection")
    assert (line["topic"], line["count"]) == (desk.names.rejected("users"), 1)


async def test_an_incident_is_told_once_in_log_metric_and_webhook(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The webhook fails at first; whoever starts anew in between tells nothing twice."""
    answers, sent = [503, 200, 200], list[dict[str, Any]]()

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"(?i)content-length: (\d+)", head)
        body = await reader.readexactly(int(length))
        status = answers.pop(0)
        if status == 200:
            sent.append(json.loads(body))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        await writer.drain()
        writer.close()
        async with received:
            received.notify_all()

    received = asyncio.Condition()

    async def until_sent(count: int) -> None:
        async with asyncio.timeout(DEADLINE), received:
            await received.wait_for(lambda: len(sent) >= count)

    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.01)
    clock = MovedClock()
    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    hook = Webhook(f"http://127.0.0.1:{port}/token-of-ours", desk.names)
    reports = Reports()
    names = desk.names
    with capture_logs() as logs:
        async with served(desk, reports, clock=clock, webhook=hook):
            await reports.until(passes=1)
            for number in range(60):
                await desk.publish(desk.rejection("users", uuid(number), Code.INVALID_ENUM, "role"))
            await reports.until(passes=reports.passes + 2)
            clock.ahead += 10_000  # the bucket is over
            await reports.until(waits_for=lambda: reports.value(OPEN, USERS) == 1)
            refused = "desk: webhook: the webhook of incidents answers 503"
            await reports.until(waits_for=lambda: refused in str(reports.reasons()))
            clock.ahead += 60_000  # the retry is due
            await reports.until(waits_for=lambda: reports.value(MESSAGES, {"outcome": "sent"}) == 1)
        async with served(desk, reports, clock=clock, webhook=hook):
            clock.ahead += 900_000  # nothing comes any more
            await until_sent(2)
            await reports.until(waits_for=lambda: reports.value(OPEN, USERS) == 0)
    server.close()
    firing, resolved = sent
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert firing["alerts"][0]["fingerprint"] == resolved["alerts"][0]["fingerprint"]
    assert firing["alerts"][0]["labels"] == resolved["alerts"][0]["labels"]
    assert firing["alerts"][0]["labels"]["entity"] == "users"
    notes = firing["alerts"][0]["annotations"]
    assert (notes["codes"], notes["fields"]) == ("invalid_enum", "role")
    assert f"{names.rejected('users')}/" in firing["alerts"][0]["annotations"]["description"]
    told = [one["event"] for one in logs if one["event"].startswith("incident_")]
    assert told == ["incident_opened", "incident_closed"]
    assert not any("token-of-ours" in str(one) for one in logs)
    outcomes = {o: reports.value(MESSAGES, {"outcome": o}) for o in ("sent", "failed")}
    assert outcomes == {"sent": 2, "failed": 1}


async def test_fewer_partitions_rebuild_the_store(
    desk: Desk, broker: Broker, remove: DeleteTopic
) -> None:
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    assert await desk.look() == (1, 1)
    topic = desk.names.rejected("users")
    await remove(topic)
    (described,) = [t for t in wanted(desk.names, 1, 1 << 20).values() if t.name == topic]
    await broker.create([described])
    with capture_logs() as logs:
        assert await desk.look() == (0, 0)
    (line,) = (one for one in logs if one["event"] == "desk_rebuilt")
    assert f"topic {topic}" in line["reason"]


async def test_a_store_that_is_removed_under_the_desk_is_made_anew(desk: Desk) -> None:
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    reports = Reports()
    async with served(desk, reports):
        assert await beside(desk) == (1, 1)
        shutil.rmtree(desk.directory)
        await reports.until(waited=1)
        assert await beside(desk) == (1, 1)
    assert await desk.look() == (1, 1)


async def test_a_store_that_is_emptied_under_the_desk_is_rebuilt_in_one_line(desk: Desk) -> None:
    """A process that opens an empty file removes what the desk has written beside it."""
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    reports = Reports()
    with capture_logs() as logs:
        async with served(desk, reports):
            assert await beside(desk) == (1, 1)
            os.truncate(desk.directory / FILE_NAME, 0)
            await reports.until(waited=1)
            assert any("while it was in use" in reason for reason in reports.reasons())
            assert await beside(desk) == (1, 1)
            rebuilt = "buddy_state_rebuilt_total"
            await reports.until(waits_for=lambda: reports.value(rebuilt, {"state": "desk"}) == 1)
            assert reports.reasons() == []
    assert [one["event"] for one in logs].count("desk_rebuilt") == 1


async def test_an_incident_needs_accepted_rows_of_the_same_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that takes long reads rejections of later than the accepted rows that it reads."""
    monkeypatch.setattr(service_module, "_PAUSE_SECONDS", 0.01)
    clock = MovedClock()
    reports = Reports()
    real = RejectionStore.apply

    def slow(self: RejectionStore, *args: Any) -> None:
        real(self, *args)
        clock.ahead += 4_000

    monkeypatch.setattr(RejectionStore, "apply", slow)
    with capture_logs() as logs:
        async with served(desk, reports, clock=clock):
            for number in range(20):
                await desk.publish(
                    *(desk.row("users", uuid(1_000 * number + n)) for n in range(99)),
                    desk.rejection("users", uuid(number), Code.INVALID_ENUM, "role"),
                )
                await reports.until(passes=reports.passes + 1)
    assert [one for one in logs if one["event"] == "incident_opened"] == []


async def test_a_webhook_that_hangs_holds_up_no_stop(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "_LAST_SECONDS", 0.1)
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    port = server.getsockname()[1]
    hook = Webhook(f"http://127.0.0.1:{port}", desk.names)
    clock = MovedClock()
    reports = Reports()
    async with served(desk, reports, clock=clock, webhook=hook):
        await reports.until(passes=1)
        for number in range(60):
            await desk.publish(desk.rejection("users", uuid(number), Code.INVALID_ENUM, "role"))
        await reports.until(passes=reports.passes + 2)
        clock.ahead += 10_000
        async with asyncio.timeout(DEADLINE):
            connection, _ = await asyncio.get_running_loop().sock_accept(server)
        began = CLOCK.steady()
    assert CLOCK.steady() - began < 5_000
    connection.close()
    server.close()


async def test_a_stand_in_works_alone_and_leaves_the_store_to_a_desk_that_comes(
    desk: Desk,
) -> None:
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    stop, stands_in, comes = asyncio.Event(), Reports(), Reports()
    service = StandInDesk(desk.broker, desk.names, desk.directory, stands_in, CLOCK)
    standing_in = asyncio.create_task(service.run(stop))
    try:
        await stands_in.until(passes=1)
        assert await beside(desk) == (1, 1)
        async with served(desk, comes):
            await comes.until(passes=1)
            await desk.publish(desk.row("users", uuid(1)))
            assert await beside(desk) == (1, 0)
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await standing_in
    assert not stands_in.waited, "it waits in silence"


async def test_a_stand_in_waits_in_silence_where_a_desk_works(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, stands_in = asyncio.Event(), Reports()
    service = StandInDesk(desk.broker, desk.names, desk.directory, stands_in, CLOCK)
    beside_it = asyncio.Event()
    monkeypatch.setattr(stands_in, "beside", beside_it.set)
    reports = Reports()
    async with served(desk, reports):
        await reports.until(passes=1)
        standing_in = asyncio.create_task(service.run(stop))
        async with asyncio.timeout(DEADLINE):
            await beside_it.wait()
        assert (stands_in.passes, stands_in.waited) == (0, 0)
        stop.set()
        await standing_in
