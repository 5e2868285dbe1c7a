"""The embedded log's own time: whose clock is believed, and what a wrong one can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.unit.embedded_kit import HOUR, opened, read_all
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.clock import boot_id, machine_clock
from worker.errors import ClockRefused
from worker.stream import OffsetRange, Partition, ProducerRecord, Topic

DAY = 24 * HOUR
LOG = Partition("log", 0)
ONE = [ProducerRecord("log", b"k", b"v")]


@pytest.fixture
async def broker(tmp_path: Path, clock: SettableClock) -> AsyncIterator[EmbeddedBroker]:
    """Believes its clock: it has written a record by it."""
    async with opened(tmp_path / "broker", clock, "boot") as broker:
        await broker.create([Topic("log", 1, retention_ms=7 * DAY)])
        await broker.publish(ONE)
        yield broker


async def times(broker: EmbeddedBroker) -> list[int]:
    return [message.timestamp for message in await read_all(broker, "log")]


def elsewhere(clock: SettableClock, ahead: int) -> SettableClock:
    """The clock of another process of the machine."""
    return SettableClock(clock.wall() + ahead, clock.steady())


async def test_a_sender_days_ahead_is_refused_and_removes_nothing(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.publish(ONE * 1000)
    async with opened(tmp_path / "broker", elsewhere(clock, 8 * DAY), "boot") as sender:
        with pytest.raises(ClockRefused, match=r"2026-01-09T.*2026-01-01T.*accept-clock") as caught:
            await sender.publish(ONE)
        assert "\n" not in str(caught.value)
        await sender.maintain()
    assert await broker.spans([LOG]) == {LOG: OffsetRange(0, 1001)}


@pytest.mark.parametrize("step", [-HOUR, HOUR, -8 * DAY, 8 * DAY])
async def test_a_clock_set_while_a_process_runs_changes_nothing(
    broker: EmbeddedBroker, clock: SettableClock, step: int
) -> None:
    start = clock.wall()
    committer = await broker.committer("task", "group")
    clock.step(step)
    with capture_logs() as logs:
        for _ in range(3):
            clock.advance(1_000)
            await broker.publish(ONE)
            await committer.commit(ONE, {LOG: 1})
        await broker.maintain()
    assert await times(broker) == [start + 1_000 * n for n in (0, 1, 1, 2, 2, 3, 3)]
    assert [line["event"] for line in logs] == ["clock_not_believed"]
    clock.step(-step)
    clock.advance(1_000)
    await broker.publish(ONE)
    assert (await times(broker))[-1] == start + 4_000


async def test_a_worker_whose_clock_is_ahead_from_its_start_goes_on(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    async with opened(tmp_path / "broker", elsewhere(clock, DAY), "boot") as worker:
        committer = await worker.committer("task", "group")
        await committer.commit(ONE, {LOG: 1})
        await worker.join("group", "log")
        await worker.publish(ONE)
    assert await times(broker) == [clock.wall()] * 3


async def test_a_sender_that_is_behind_writes_by_the_logs_time(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    clock.advance(5_000)
    async with opened(tmp_path / "broker", elsewhere(clock, -8 * DAY), "boot") as sender:
        await sender.publish(ONE)
    assert await times(broker) == [clock.wall() - 5_000, clock.wall()]


async def test_the_tolerance_does_not_add_up(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    for seconds in (50, 100, 150):
        async with opened(tmp_path / "broker", elsewhere(clock, seconds * 1_000), "boot") as sender:
            if seconds < 60:
                await sender.publish(ONE)
            else:
                with pytest.raises(ClockRefused):
                    await sender.publish(ONE)


async def test_a_log_that_nobody_used_for_ten_days(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    clock.advance(10 * DAY)
    await broker.publish(ONE)
    assert (await times(broker))[-1] == clock.wall()


@pytest.mark.parametrize("gap", [0, 10 * DAY])
async def test_after_a_restart_of_the_machine_a_clock_is_believed_that_is_not_behind(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock, gap: int
) -> None:
    later = SettableClock(clock.wall() + gap, steady=0)
    async with opened(tmp_path / "broker", later, "another boot") as after:
        await after.publish(ONE)
        assert (await times(after))[-1] == later.wall()


async def test_after_a_restart_a_clock_that_is_behind_waits_for_the_last_append(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    last = clock.wall()
    dead_battery = SettableClock(last - 300 * DAY, steady=0)
    async with opened(tmp_path / "broker", dead_battery, "another boot") as after:
        await after.publish(ONE)
        dead_battery.advance(10_000)
        await after.publish(ONE)
        assert await times(after) == [last] * 3
        dead_battery.step(300 * DAY)  # the time server answers
        await after.publish(ONE)
        assert (await times(after))[-1] == last + 10_000


async def test_somebody_says_that_the_clock_is_right(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    ahead = elsewhere(clock, 3 * DAY)
    async with opened(tmp_path / "broker", ahead, "boot") as sender:
        assert (await sender.accept_clock()).ahead == 3 * DAY
        await sender.publish(ONE)
        assert (await times(sender))[-1] == ahead.wall()
    await broker.publish(ONE)  # of the others all are behind now
    assert (await times(broker))[-1] == ahead.wall()


async def test_what_is_unread_after_a_long_time_off_can_still_be_read(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    """And is removed after a day, which a reader then reports."""
    committer = await broker.committer("task", "group")
    await committer.commit(ONE, {LOG: 1})
    await broker.close()
    later = SettableClock(clock.wall() + 30 * DAY, steady=0)
    async with opened(tmp_path / "broker", later, "another boot") as after:
        await after.publish(ONE)
        await after.maintain()
        assert await after.spans([LOG]) == {LOG: OffsetRange(1, 3)}
        later.advance(DAY)
        await after.publish(ONE)
        await after.maintain()
        assert await after.spans([LOG]) == {LOG: OffsetRange(2, 4)}
        reader = after.reader()
        reader.assign({LOG: 1})
        assert len(await reader.read(10, 0)) == 2
        assert reader.expired() == {LOG: 1}


async def test_a_damaged_anchor_is_none(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker._writing.run(lambda connection: connection.execute("UPDATE log SET wall = 0"))
    await broker.publish(ONE)
    assert await times(broker) == [clock.wall()] * 2


def test_the_machines_clock_is_the_same_for_all() -> None:
    one, other = machine_clock(), machine_clock()
    assert abs(one.steady() - other.steady()) < 1_000
    assert boot_id() == boot_id()
