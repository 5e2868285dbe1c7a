"""One batch of one task, from the inbox to the commit."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from worker.brokers.contract import Broker, Message
from worker.clock import Clock
from worker.core.ahead import Ahead
from worker.core.outbox import Rules
from worker.core.task import Decision
from worker.engine.follower import Follower
from worker.engine.identities import Identities
from worker.engine.refusals import Refusals
from worker.engine.reports import Reports
from worker.engine.tasks import Owned, reached
from worker.errors import BrokerUnavailable, BuddyError, Fenced, MessageRefused, MissingTopic
from worker.index.contract import Learned

_SYNC_PATIENCE: Final = 30.0
_QUIET_MS: Final = 5_000
_TELL_MS: Final = 1_000
"""So often the group is told where a task reads. People's tools look there; whoever takes a task
over reads its progress, which is part of every transaction. It costs a third of a small one."""


class Batch(msgspec.Struct, frozen=True):
    """What a task has read: the messages, and what is read next of each of its inputs."""

    messages: Sequence[Message]
    positions: Mapping[str, int]


class Judging:
    """Has tasks decide on batches, and commits what they decide."""

    def __init__(
        self,
        broker: Broker,
        rules: Rules,
        follower: Follower,
        identities: Identities,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self._broker = broker
        self._rules = rules
        self._follower = follower
        self._identities = identities
        self._reports = reports
        self._clock = clock
        self.refusals = Refusals(rules.names)

    def begin(self, batches: Sequence[tuple[Owned, Batch]]) -> None:
        """Start the work on each task's batch; `owned.work` is then under way."""
        if not batches:
            return
        # After what the batches hold was read, and once for all of them.
        check = asyncio.create_task(self._identities.check())
        check.add_done_callback(_looked_at)  # nobody may get as far as to wait for it
        for owned, batch in batches:
            owned.work = asyncio.create_task(self._work(owned, batch, check))

    def is_quiet(self, owned: Owned) -> bool:
        """Whether a task with nothing to write commits all the same.

        Somebody may have taken it over, to reset it for one (`reprocess`), and an idle task would
        never find out. And the group is to know where it reads.
        """
        now = self._clock.steady()
        return now - owned.touched >= _QUIET_MS or (owned.untold and now - owned.told >= _TELL_MS)

    async def leave(self, owned: Owned) -> None:
        """Before a task is given up for good: the log keeps what is held, the group is told.

        Whoever comes next may come late. Where that fails nothing is lost that has not expired.
        """
        if owned.work is not None and not await owned.work:
            return  # what it has decided may not stand in the log
        with suppress(BuddyError):
            while (outputs := owned.task.farewell(self._clock.now())) or owned.untold:
                owned.untold = False
                await self._identities.check()
                await owned.committer.commit(outputs, reached(owned.task, self._rules))

    async def _work(self, owned: Owned, batch: Batch, check: asyncio.Task[None]) -> bool:
        """Judge and commit; whether the task may go on. Raises TopicRecreated."""
        began = self._clock.steady()
        number = owned.task.number
        try:
            decision = await self._judge(owned, batch)
            await asyncio.wait({check})
            check.result()
            if not decision.outputs and not self.is_quiet(owned):
                return True
            owned.touched = now = self._clock.steady()
            tells = not decision.outputs or now - owned.told >= _TELL_MS
            owned.untold = not tells
            if tells:
                owned.told = now
            offsets = reached(owned.task, self._rules) if tells else {}
            await owned.committer.commit(decision.outputs, offsets)
        except MessageRefused as error:
            self._reports.not_committed(number, error)
            self._reports.refused(number, self.refusals.note(number, decision.outputs, error))
            return False
        except (Fenced, BrokerUnavailable, MissingTopic) as error:
            self._reports.not_committed(number, error)
            return False
        self._reports.committed(number, decision.tally, began)
        self.refusals.settled(number, decision.tally.isolated)
        return True

    async def _judge(self, owned: Owned, batch: Batch) -> Decision:
        """Decide on the batch, as the index is now or, where that does not do, synchronised."""
        async with self._follower.lock:
            index, now = self._follower.index, self._clock.now()
            if not owned.task.needs_synchronised(batch.messages, index, now):
                return self._decide(owned, batch, synchronised=False)
        await self._synchronise()
        async with self._follower.lock:
            return self._decide(owned, batch, synchronised=True)

    def _decide(self, owned: Owned, batch: Batch, *, synchronised: bool) -> Decision:
        learned, owned.learned = owned.learned, Learned([], [])
        return owned.task.judge(
            batch.messages,
            batch.positions,
            learned,
            Ahead(self._follower.index),
            self._clock.now(),
            synchronised=synchronised,
        )

    async def _synchronise(self) -> None:
        """Have the index show every row that is committed by now.

        That may take as long as a transaction that a dead worker has left open.
        """
        spans = await self._broker.spans(self._follower.accepted, uncommitted=True)
        ends = {partition: span.end for partition, span in spans.items()}
        await self._follower.reach(ends, _SYNC_PATIENCE)


def _looked_at(task: asyncio.Task[None]) -> None:
    """Keep asyncio from complaining that nobody looked at an exception."""
    if not task.cancelled():
        task.exception()
