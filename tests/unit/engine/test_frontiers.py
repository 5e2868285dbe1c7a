"""Frontiers while an input ends before what is judged of it: it has lost its last records."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.unit.core_kit import NOW, good, to_json, uid
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.decode import Decoded, decoders, latest_moment
from worker.core.parked import Parked, State
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names
from worker.engine.frontiers import Frontiers
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.engine.last_checkpoints import LastCheckpoints
from worker.stream import Message, OffsetRange, Partition

NAMES = Names("b")
USERS, MATCHES = (Partition(NAMES.input(entity), 0) for entity in INDEXED)
ACCEPTED = [Partition(NAMES.accepted(entity), 0) for entity in INDEXED]


class Stage:
    """A worker with one milestone whose grace is over; everything is judged up to 10."""

    def __init__(self) -> None:
        self.clock = SettableClock()
        self.ends = {USERS: 10, MATCHES: 0, **dict.fromkeys(ACCEPTED, 5)}
        self.followed = dict.fromkeys(ACCEPTED, 5)
        self.damaged = False
        self.meanwhile: list[dict[str, Any]] = []
        """Checkpoints that are read while the broker is asked."""
        broker = cast("Any", SimpleNamespace(spans=self._spans, reader=lambda: None))
        identities = {USERS.topic: "one", MATCHES.topic: "one"}
        self.updater = IndexUpdater(
            broker, NAMES, cast("Any", None), identities, self.clock, LastCheckpoints()
        )
        self.updater.accepted = ACCEPTED
        self.updater._followed = self.followed
        settings = TaskSettings(names=NAMES, tasks=1, grace=0)
        self.frontiers = Frontiers(broker, settings, self.updater, self.clock)
        self.task = Task(0, settings)
        value = to_json(good("milestones", 1, user_id=uid(7)))
        message = Message(NAMES.input("milestones"), 0, 3, NOW, None, value)
        decoded = decoders(10_000)["milestones"].decode(value, None, latest_moment(NOW, 60))
        assert isinstance(decoded, Decoded)
        self.parked = Parked("milestones", message, decoded, NOW, self.clock.now(), 3)
        self.task.parking.add(self.parked)
        self.said(10)

    def said(self, judged: int, truncations: int = 0) -> None:
        """The owner of the inputs has saved a checkpoint."""
        positions = {"users": judged, "matches": 0}
        checkpoint = Checkpoint(
            positions,
            positions,
            {"users": "one"},
            earlier={"users": truncations} if truncations else {},
        )
        value = write_checkpoint(checkpoint)
        self.updater._take_checkpoints([Message(NAMES.progress, 0, 0, 0, b"0", value)])

    async def _spans(
        self, places: Iterable[Partition], *, uncommitted: bool
    ) -> dict[Partition, OffsetRange]:
        found = {place: OffsetRange(0, self.ends[place]) for place in places}
        for checkpoint in self.meanwhile:
            self.said(**checkpoint)
        self.meanwhile = []
        return found

    async def advance(self) -> State:
        self.clock.advance(200)
        await self.frontiers.advance([self.task])
        return self.parked.state

    @property
    def passed(self) -> bool:
        return self.parked.frontier is not None and self.parked.frontier.passed


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_a_frontier_is_passed_where_nothing_is_missing(stage: Stage) -> None:
    assert await stage.advance() is State.HAS_FRONTIER
    assert stage.passed


async def test_no_frontier_is_noted_before_the_owner_has_seen_the_truncated(stage: Stage) -> None:
    stage.ends[USERS] = 8  # 7 are left, and one is new
    with capture_logs() as logs:
        for _ in range(30):
            assert await stage.advance() is State.NEEDS_FRONTIER
    assert stage.frontiers.blocked_by() == [USERS]
    blocked = [entry for entry in logs if entry["event"] == "verdicts_blocked"]
    assert {tuple(entry["by"]) for entry in blocked} == {("b.in.users/0",)}
    stage.said(7, truncations=1)
    assert await stage.advance() is State.HAS_FRONTIER
    assert stage.frontiers.blocked_by() == [USERS], "the new record is not judged"
    stage.said(8, truncations=1)
    await stage.advance()
    assert stage.passed
    assert stage.frontiers.waiting_since() is None


async def test_a_frontier_does_not_wait_for_offsets_that_are_gone(stage: Stage) -> None:
    stage.ends[USERS] = 12
    await stage.advance()
    assert stage.frontiers.blocked_by() == [USERS]
    stage.ends[USERS] = 7
    await stage.advance()
    assert not stage.passed
    stage.said(7, truncations=1)
    assert await stage.advance() is State.HAS_FRONTIER
    assert stage.passed


async def test_a_frontier_does_not_count_what_was_judged_before_a_truncation(
    stage: Stage,
) -> None:
    """The end was noted after it, and the checkpoint from before it was read later."""
    stage.updater.judged = {}
    stage.ends[USERS] = 8
    await stage.advance()
    assert stage.frontiers.blocked_by() == [USERS]
    stage.said(10)
    for _ in range(3):
        await stage.advance()
        assert not stage.passed
    stage.said(7, truncations=1)
    assert await stage.advance() is State.HAS_FRONTIER
    assert not stage.passed
    stage.said(8, truncations=1)
    await stage.advance()
    assert stage.passed


async def test_a_truncation_that_is_told_while_the_ends_are_asked_for_counts(stage: Stage) -> None:
    stage.updater.judged = {}
    stage.ends[USERS] = 8
    await stage.advance()
    stage.said(10)
    stage.ends[USERS] = 10  # has grown again
    stage.meanwhile = [{"judged": 7, "truncations": 1}]
    assert await stage.advance() is State.NEEDS_FRONTIER
    assert await stage.advance() is State.HAS_FRONTIER
    assert not stage.passed


async def test_a_record_that_no_longer_waits_leaves_no_report(stage: Stage) -> None:
    stage.ends[USERS] = 8
    await stage.advance()
    assert stage.frontiers.waiting_since() is not None
    stage.task.parking.remove(stage.parked)
    stage.clock.advance(200)
    await stage.frontiers.advance([stage.task])
    assert stage.frontiers.waiting_since() is None
    assert stage.frontiers.blocked_by() == []
