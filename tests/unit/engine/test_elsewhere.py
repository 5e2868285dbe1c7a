"""A backlog that several workers share: who waits for whom, and that nobody waits for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.clock_kit import SettableClock
from tests.unit.core_kit import NOW, good, to_json
from worker.core.decode import Decoded, decoders, latest_moment
from worker.core.moments import Moment
from worker.core.parked import Parked
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names
from worker.engine.elsewhere import Backlog, Elsewhere, young_users
from worker.engine.order import FOREVER
from worker.stream import Message, OffsetRange, Partition

NAMES = Names("b")
USERS, MATCHES = (Partition(NAMES.input(entity), 1) for entity in ("users", "matches"))


class Pair:
    """A worker that has the first of two tasks; the other one's worker is elsewhere."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.passed: dict[Partition, tuple[int, int]] = {}
        self.ends = {USERS: 0, MATCHES: 0}
        self.asked: list[set[Partition]] = []
        self.own = Task(0, TaskSettings(names=NAMES))
        broker = cast("Any", SimpleNamespace(spans=self._spans))
        self._elsewhere = Elsewhere(broker, NAMES, 2, self.passed, self.clock.steady)

    async def _spans(
        self, places: list[Partition], *, uncommitted: bool
    ) -> dict[Partition, OffsetRange]:
        self.asked.append(set(places))
        return {place: OffsetRange(0, self.ends[place]) for place in places}

    async def watermarks(
        self, newest: int, first: int | None = None, *, live: bool = False, alone: bool = False
    ) -> tuple[int, int]:
        """Up to where users, and matches, are judged."""
        running = {0: self.own, 1: self.own} if alone else {0: self.own}
        heads = {"users": 1, "events": newest if first is None else first}
        waiting = Backlog(heads, newest, live=live)
        await self._elsewhere.refresh(running, waiting)
        found = self._elsewhere.watermarks(running, waiting)
        return found["users"], found["matches"]


@pytest.fixture
def pair() -> Pair:
    return Pair()


async def test_a_backlog_follows_what_the_other_one_has_judged(pair: Pair) -> None:
    pair.ends = {USERS: 10, MATCHES: 10}
    pair.passed |= {USERS: (5, 400), MATCHES: (3, 200)}
    assert await pair.watermarks(newest=9_000) == (400, 200)
    pair.passed |= {USERS: (7, 700), MATCHES: (9, 9_000)}
    assert await pair.watermarks(newest=9_000) == (700, FOREVER)


async def test_a_worker_of_all_tasks_waits_and_asks_for_nothing(pair: Pair) -> None:
    assert await pair.watermarks(newest=9_000, alone=True) == (FOREVER, FOREVER)
    assert pair.asked == []


async def test_nothing_is_asked_where_nothing_waits(pair: Pair) -> None:
    pair.passed |= {USERS: (5, 400), MATCHES: (5, 400)}
    assert await pair.watermarks(newest=9_000, first=350) == (400, 400)
    assert pair.asked == []


async def test_an_idle_task_is_not_behind(pair: Pair) -> None:
    """It says nothing for seconds: its inputs are asked, at once and then seldom."""
    pair.ends = {USERS: 5, MATCHES: 0}
    pair.passed |= {USERS: (5, 400)}
    assert await pair.watermarks(newest=9_000) == (FOREVER, FOREVER)
    assert await pair.watermarks(newest=9_050) == (9_000, 9_000)
    pair.clock.advance(100)
    assert await pair.watermarks(newest=9_050) == (FOREVER, FOREVER)
    assert pair.asked == [{USERS, MATCHES}] * 2


async def test_a_live_stream_waits_for_nothing_that_is_a_little_behind(pair: Pair) -> None:
    pair.ends = {USERS: 10, MATCHES: 10}
    pair.passed |= {USERS: (5, 8_500), MATCHES: (5, 8_499)}
    assert await pair.watermarks(newest=9_000, live=True) == (FOREVER, 8_499)
    assert await pair.watermarks(newest=9_000) == (8_500, 8_499)


async def test_an_input_that_nobody_reads_is_waited_for_no_longer(pair: Pair) -> None:
    pair.ends = {USERS: 10, MATCHES: 10}
    pair.passed |= {USERS: (5, 400), MATCHES: (5, 400)}
    for _ in range(20):
        assert await pair.watermarks(newest=9_000) == (400, 400)
        pair.clock.advance(100)
    assert await pair.watermarks(newest=9_000) == (FOREVER, FOREVER)
    # Somebody has taken its task over.
    pair.passed[USERS] = (6, 500)
    assert await pair.watermarks(newest=9_000) == (500, FOREVER)
    pair.clock.advance(100)
    assert await pair.watermarks(newest=9_000) == (500, FOREVER)


async def test_a_user_that_waits_for_an_owner_elsewhere_is_waited_for(pair: Pair) -> None:
    pair.passed |= {USERS: (0, 9_000), MATCHES: (0, 9_000)}
    value = to_json(good("users"))
    row = decoders(10_000)["users"].decode(value, None, latest_moment(NOW, 0))
    assert isinstance(row, Decoded)
    message = Message(NAMES.input("users"), 0, 3, 700, None, value)
    read = Moment(0, pair.clock.steady())
    pair.own.parking.add(Parked("users", message, row, 700, read, 3))
    assert await pair.watermarks(newest=9_000) == (699, FOREVER)
    pair.clock.advance(2_000)
    assert young_users([pair.own], pair.clock.steady()) == []
    assert await pair.watermarks(newest=9_000) == (FOREVER, FOREVER)
