"""What the index updater makes of checkpoints: how far the tasks have judged their inputs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worker.clock import Clock
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.frontier import Frontier
from worker.core.topics import Names
from worker.engine.index_updater import IndexUpdater
from worker.engine.last_checkpoints import LastCheckpoints
from worker.errors import MissingTopic
from worker.stream import Message, OffsetRange, Partition, Topic

NAMES = Names("b")
USERS = Partition(NAMES.input("users"), 0)


def told(*identities: str) -> IndexUpdater:
    """An index updater of the topic `new` that has read a progress for each of these identities."""
    broker = cast("Any", SimpleNamespace(reader=lambda: None))
    index = cast("Any", None)
    updater = IndexUpdater(broker, NAMES, index, {USERS.topic: "new"}, Clock(), LastCheckpoints())
    for offset, identity in enumerate(identities):
        progress = Checkpoint({"users": 8}, {"users": 7}, {"users": identity}, {"users": 123})
        value = write_checkpoint(progress)
        updater._take_checkpoints([Message(NAMES.progress, 0, offset, 0, b"0", value)])
    return updater


def test_what_was_judged_of_the_topic_counts() -> None:
    assert told("old", "new").judged == {USERS: 7}
    assert told("old", "new").passed == {USERS: (8, 123)}
    assert told("old").passed == {}


def test_what_was_judged_of_an_earlier_topic_keeps_even_an_empty_one_from_being_judged() -> None:
    """Copies of what was parked may be left: the task has not yet begun with the new topic."""
    frontier = Frontier({USERS: 0}, covers_matches=False)
    assert frontier.advance(told("old").judged) == [USERS]
    assert frontier.advance(told("old", "new").judged) == []


class Emptied:
    """A reader that finds what it was to read next removed."""

    def __init__(self, gone: dict[Partition, int]) -> None:
        self._gone = gone

    async def read(self, _limit: int, _timeout: float) -> list[Message]:
        return []

    def truncated(self) -> dict[Partition, int]:
        return {}

    def skipped(self) -> dict[Partition, int]:
        return {}

    def expired(self) -> dict[Partition, int]:
        return self._gone


async def test_rows_that_are_removed_under_a_running_worker_are_told() -> None:
    place = Partition(NAMES.accepted("users"), 0)
    reader = Emptied({place: 3, Partition(NAMES.progress, 0): 2})
    broker = cast("Any", SimpleNamespace(reader=lambda: reader))
    index = cast("Any", SimpleNamespace(stamp=lambda _now: None))
    updater = IndexUpdater(broker, NAMES, index, {}, Clock(), LastCheckpoints())
    told = []
    updater.on_expired = lambda *gone: told.append(gone)
    await updater._follow(0)
    assert told == [(place, 3)], "its progress is the task's to tell"


async def test_a_topic_deleted_before_the_start_is_reported() -> None:
    async def topics(names: list[str]) -> dict[str, Topic]:
        return {name: Topic(name, 1) for name in names if name != NAMES.accepted("matches")}

    broker = cast("Any", SimpleNamespace(reader=lambda: None, topics=topics))
    updater = IndexUpdater(broker, NAMES, cast("Any", None), {}, Clock(), LastCheckpoints())
    with pytest.raises(MissingTopic, match=r"b\.accepted\.matches is missing: run 'buddy topics"):
        await updater.start()


class Quiet(Emptied):
    """A reader that gets no message. Without damage, its position moves to `end` in the 51st read.

    That is the first one after ten seconds of nothing.
    """

    def __init__(self, place: Partition, end: int, damage: dict[Partition, str]) -> None:
        super().__init__({})
        self._place = place
        self._end = end
        self._damage = damage
        self.reads = 0

    async def read(self, _limit: int, _timeout: float) -> list[Message]:
        self.reads += 1
        return []

    def damaged(self) -> dict[Partition, str]:
        return self._damage

    def position(self, place: Partition) -> int:
        is_over = self.reads > 50 and not self._damage and place == self._place
        return self._end if is_over else 0


def restoring(reader: Quiet, place: Partition) -> tuple[IndexUpdater, list[str], asyncio.Event]:
    """An updater that restores from that partition, what it says of outages, and what stops it."""

    async def spans(_places: list[Partition], **_: bool) -> dict[Partition, OffsetRange]:
        return {place: OffsetRange(0, 5)}

    broker = cast("Any", SimpleNamespace(reader=lambda: reader, spans=spans))
    index = cast("Any", SimpleNamespace(stamp=lambda _now: None, counts=lambda: {"users": 0}))
    updater = IndexUpdater(broker, NAMES, index, {}, Clock(), LastCheckpoints())
    updater.accepted = [place]
    updater._followed = {place: 0}
    told: list[str] = []
    updater.on_outage = lambda error: told.append(str(error))
    stop = asyncio.Event()

    def until_late() -> None:
        if reader.reads >= 120:
            stop.set()

    updater.on_step = until_late
    return updater, told, stop


async def test_offsets_without_messages_that_end_the_wait_for_them() -> None:
    """The records were deleted meanwhile: the restoring is over, with nothing left to report."""
    place = Partition(NAMES.accepted("users"), 0)
    updater, told, stop = restoring(Quiet(place, 5, {}), place)
    await updater._bootstrap(stop)
    assert updater.ready.is_set()
    assert told == []


async def test_damage_is_not_called_an_open_transaction() -> None:
    place = Partition(NAMES.accepted("users"), 0)
    for damage, lines in (({place: "is damaged"}, 0), ({}, 2)):
        reader = Quiet(place, 0, damage)
        updater, told, stop = restoring(reader, place)
        await updater._bootstrap(stop)
        assert not updater.ready.is_set()
        assert len(told) == lines, told
