"""Faults planted in take-overs, sessions and rounds: docs/exactly-once.md, "Fence, then read"."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final
from unittest.mock import patch

from tests.proofs.simulation.broker.connection import MemoryBroker, MemoryReader
from tests.proofs.simulation.plant import Plant, planter
from worker.core.addresses import Addresses
from worker.core.ownership import owner_tombstone, writer_name
from worker.core.ownership import owners_before as real_owners_before
from worker.core.recent import RecentRows
from worker.core.task import Task
from worker.core.task_round import TaskRound
from worker.engine.reprocess import _reset as real_reset
from worker.engine.rounds import Rounds
from worker.engine.session import Session
from worker.engine.takeover import Earlier
from worker.engine.takeover import _fence as real_fence
from worker.engine.takeover import _not_given_up as real_not_given_up
from worker.engine.takeover import fence_earlier as real_fence_earlier
from worker.engine.task_handle import TaskHandle
from worker.engine.task_restorer import TaskRestorer
from worker.engine.tasks import TaskManager
from worker.stream import Message, Partition, ProducerRecord

OWNERS: Final[dict[str, Plant]] = {}
"""By name."""

_EVER: Final = 1 << 60
_planted = planter(OWNERS)


async def _nothing(*_: object) -> None:
    pass


# --- who is fenced ------------------------------------------------------------------------------


@_planted
def nobody_fences_earlier_owners() -> Iterator[None]:
    """They are named, waited for and struck out, and may still write."""
    with patch("worker.engine.takeover._fence", _nothing):
        yield


@_planted
def only_the_newest_earlier_owner_is_fenced() -> Iterator[None]:
    """As if whoever took a task over had always fenced those before it."""

    def owners_before(messages: Sequence[Message], offset: int) -> list[str]:
        return real_owners_before(messages, offset)[-1:]

    with patch("worker.engine.takeover.owners_before", owners_before):
        yield


@_planted
def owners_after_our_own_record_are_fenced_too() -> Iterator[None]:
    """Two that take over at once may fence each other."""

    def owners_before(messages: Sequence[Message], _offset: int) -> list[str]:
        return real_owners_before(messages, _EVER)

    with patch("worker.engine.takeover.owners_before", owners_before):
        yield


@_planted
def owners_before_our_own_record_are_not_fenced() -> Iterator[None]:
    """Only those that come later are."""

    def owners_before(messages: Sequence[Message], offset: int) -> list[str]:
        return real_owners_before([m for m in messages if m.offset > offset], _EVER)

    with patch("worker.engine.takeover.owners_before", owners_before):
        yield


@_planted
def owners_are_looked_for_among_the_committed() -> Iterator[None]:
    """What is open is waited for instead."""

    def reader(self: MemoryBroker, *, uncommitted: bool = False) -> MemoryReader:
        del uncommitted
        return MemoryReader(self.cluster, self.network, uncommitted=False)

    with patch.object(MemoryBroker, "reader", reader):
        yield


@_planted
def only_the_newest_is_fenced_and_all_are_struck_out() -> Iterator[None]:
    """Nobody will ever fence the others."""
    spared: ContextVar[Collection[str]] = ContextVar("spared", default=())

    async def unreleased(broker: Any, place: Partition, *args: Any) -> Earlier:
        found = await real_not_given_up(broker, place, *args)
        spared.set(found.owners[:-1])
        return found

    async def fence(broker: Any, names: Any, name: str) -> None:
        if name not in {writer_name(names, owner) for owner in spared.get()}:
            await real_fence(broker, names, name)

    with (
        patch("worker.engine.takeover._not_given_up", unreleased),
        patch("worker.engine.takeover._fence", fence),
    ):
        yield


@_planted
def later_owners_are_struck_out() -> Iterator[None]:
    """Whoever takes the task over from them does not see them."""

    async def fence_earlier(
        broker: MemoryBroker, names: Any, number: int, owner: str, offset: int, own: Any
    ) -> Earlier:
        found = await real_fence_earlier(broker, names, number, owner, offset, own)
        log = broker.cluster.logs[names.owners, number]
        later = real_owners_before([m for m in log.entries[offset + 1 :] if m], _EVER)
        return found._replace(owners=[*found.owners, *(one for one in later if one != owner)])

    with patch("worker.engine.tasks.fence_earlier", fence_earlier):
        yield


# --- when ---------------------------------------------------------------------------------------


def _late(count: int) -> Iterator[None]:
    """So many of the fences of a take-over come when the state has been read."""
    late: ContextVar[list[str] | None] = ContextVar("late", default=None)
    early: ContextVar[Collection[str]] = ContextVar("early", default=())
    real = TaskRestorer.restore

    async def unreleased(broker: Any, place: Partition, number: int, own: Any, s: float) -> Any:
        found = await real_not_given_up(broker, place, number, own, s)
        early.set(found.owners[:-count])
        return found

    async def fence(broker: Any, names: Any, name: str) -> None:
        waiting = late.get()
        if waiting is None or name in {writer_name(names, owner) for owner in early.get()}:
            await real_fence(broker, names, name)
        else:
            waiting.append(name)

    async def fence_earlier(*args: Any, **options: Any) -> Earlier:
        late.set([])
        return await real_fence_earlier(*args, **options)

    async def fence_late(broker: Any, names: Any) -> None:
        await asyncio.gather(*(real_fence(broker, names, name) for name in late.get() or ()))

    async def restore(restorer: TaskRestorer, number: int, earlier: Earlier) -> TaskHandle:
        handle = await real(restorer, number, earlier)
        await fence_late(restorer._broker, restorer._settings.names)
        return handle

    async def reset(broker: Any, names: Any, *args: Any) -> Any:
        found = await real_reset(broker, names, *args)
        await fence_late(broker, names)
        return found

    with (
        patch("worker.engine.takeover._not_given_up", unreleased),
        patch("worker.engine.takeover._fence", fence),
        patch("worker.engine.tasks.fence_earlier", fence_earlier),
        patch("worker.engine.reprocess.fence_earlier", fence_earlier),
        patch.object(TaskRestorer, "restore", restore),
        patch("worker.engine.reprocess._reset", reset),
    ):
        yield


@_planted
def state_read_before_the_fences() -> Iterator[None]:
    """The earlier owners are fenced when the state has long been read."""
    yield from _late(1_000)


@_planted
def state_read_before_the_last_fence() -> Iterator[None]:
    """All but the newest of the earlier owners are fenced before."""
    yield from _late(1)


@_planted
def take_over_not_waited_for() -> Iterator[None]:
    """A take-over is supposed to stand where the log ended when it was sent."""
    real = Session.commit

    async def commit(session: Session, messages: Sequence[ProducerRecord], offsets: Any) -> Any:
        said = real(session, messages, offsets)
        if not all(m.topic.endswith(".owners") and m.value for m in messages):
            return await said
        cluster = session._broker.cluster  # type: ignore[attr-defined]
        ends = [(m.partition, cluster.logs[m.topic, m.partition].end) for m in messages]
        asyncio.create_task(said).add_done_callback(lambda done: done.exception())
        return ends

    with patch.object(Session, "commit", commit):
        yield


# --- what is given up ----------------------------------------------------------------------------


@_planted
def a_release_overtakes_the_round_on_its_way() -> Iterator[None]:
    """The next owner believes it, and reads the state without that round."""
    real = TaskManager._revoke

    async def revoke(tasks: TaskManager, numbers: Sequence[int]) -> None:
        tasks.before_giving_up = _nothing
        await real(tasks, numbers)

    with patch.object(TaskManager, "_revoke", revoke):
        yield


@_planted
def a_release_in_the_round_on_its_way() -> Iterator[None]:
    """One transaction has it and the last of the task's state."""
    real_revoke, real_commit = TaskManager._revoke, Session.commit
    released: dict[Session, list[ProducerRecord]] = {}

    async def revoke(tasks: TaskManager, numbers: Sequence[int]) -> None:
        if tasks.session is not None:
            released[tasks.session] = tasks.tombstones(numbers)
        await real_revoke(tasks, numbers)

    async def commit(session: Session, messages: Sequence[ProducerRecord], offsets: Any) -> Any:
        return await real_commit(session, [*messages, *released.pop(session, ())], offsets)

    with (
        patch.object(TaskManager, "_revoke", revoke),
        patch.object(Session, "commit", commit),
    ):
        yield


@_planted
def a_release_with_a_reset() -> Iterator[None]:
    """An operator's one transaction has both."""
    real = Session.commit

    async def reset(broker: Any, names: Any, entity: str, number: int, offset: int) -> Any:
        back, messages, reset_to = await real_reset(broker, names, entity, number, offset)
        messages += [ProducerRecord("the owner", None, None, partition=number)]
        return back, messages, reset_to

    async def commit(session: Session, messages: Sequence[ProducerRecord], offsets: Any) -> Any:
        some = [
            owner_tombstone(session._names, m.partition or 0, session.owner)
            if m.topic == "the owner"
            else m
            for m in messages
        ]
        return await real(session, some, offsets)

    with (
        patch("worker.engine.reprocess._reset", reset),
        patch.object(Session, "commit", commit),
    ):
        yield


@_planted
def revoked_tasks_stay_in_the_round_that_waits() -> Iterator[None]:
    """They are decided on though they have been given up."""
    real = Rounds.resume

    async def resume(rounds: Rounds, tasks: TaskManager) -> None:
        waiting = rounds._postponed
        await real(rounds, tasks if waiting is None else _All(tasks, waiting.tasks))  # type: ignore[arg-type]

    with patch.object(Rounds, "resume", resume):
        yield


class _All:
    def __init__(self, tasks: TaskManager, running: Mapping[int, TaskHandle]) -> None:
        self.running = running
        self._tasks = tasks

    def __getattr__(self, name: str) -> object:
        return getattr(self._tasks, name)


# --- sessions and rounds --------------------------------------------------------------------------


@_planted
def names_of_sessions_are_used_again() -> Iterator[None]:
    """After a failure a process goes on under the name that it had."""
    real = Session.__init__

    def init(session: Session, broker: Any, names: Any) -> None:
        real(session, broker, names)
        session.owner = broker.__dict__.setdefault("_owner", session.owner)

    with patch.object(Session, "__init__", init):
        yield


@_planted
def recent_rows_forgotten_at_once() -> Iterator[None]:
    """Once they are committed, though the index may not show them yet."""
    real = RecentRows.followed

    def followed(recent: RecentRows, _positions: object) -> None:
        real(recent, dict.fromkeys(recent._located, _EVER))

    with patch.object(RecentRows, "followed", followed):
        yield


@_planted
def recent_rows_forgotten_before_they_are_committed() -> Iterator[None]:
    """With every round."""

    def followed(recent: RecentRows, _positions: object) -> None:
        for rows in (recent._users, recent._matches, recent._holders, recent._located):
            rows.clear()

    with patch.object(RecentRows, "followed", followed):
        yield


@_planted
def recent_rows_never_forgotten() -> Iterator[None]:
    """Whatever other workers have made of them since."""
    with patch.object(RecentRows, "followed", lambda *_: None):
        yield


@_planted
def rows_of_a_failed_round_kept() -> Iterator[None]:
    """Those of a session outlive it."""
    real = Rounds.start

    async def go(rounds: Rounds, tasks: TaskManager, batches: Any, learned: Any) -> None:
        rounds._session = tasks.session
        await real(rounds, tasks, batches, learned)

    with patch.object(Rounds, "start", go):
        yield


@_planted
def tasks_that_run_elsewhere_grant_addresses() -> Iterator[None]:
    """A worker grants for an owner whose state it has not read."""
    real = TaskRound.__init__

    def begin(part: TaskRound, task: Task, owners: Mapping[int, Addresses], *args: Any) -> None:
        real(part, task, _Owners(owners), *args)

    with patch.object(TaskRound, "__init__", begin):
        yield


class _Owners(dict[int, Addresses]):
    def get(self, number: int, default: Any = None) -> Any:
        return super().get(number, Addresses())
