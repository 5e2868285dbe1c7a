"""A worker as steps: the rounds, tasks and commits of worker/engine/worker.py and tasks.py.

What the real shell does between two awaits is done here between two yields, in the same order;
each coroutine of its own there (the round, a read, a commit, a take-over) is a `Thread` here.
"""

from __future__ import annotations

from typing import Any, Final

from tests.simulation.following import Barriers, Follower, Saved, ends
from tests.simulation.group import Batch, Cluster, Owned
from tests.simulation.promises import Broken
from tests.simulation.settings import Settings
from tests.simulation.taking_over import take_over
from tests.simulation.threads import Outage, Step, Thread
from tests.simulation.world import Fenced, Log, Transaction, World
from worker.brokers.contract import Message, Outgoing
from worker.core.ahead import Ahead
from worker.core.moments import Moment
from worker.core.outbox import Rules, Tally
from worker.core.pressure import crowded
from worker.core.task import Decision
from worker.index.contract import Learned

_BACKOFF: Final = 200
LOOK_EVERY: Final = 5_000
"""Milliseconds after which an idle worker looks whether its topics are still the same."""


class Recreated(Exception):
    """A topic is no longer the one that the worker began with."""


class Worker:
    """One process. `threads` are what the schedule steps."""

    def __init__(
        self, number: int, world: World, cluster: Cluster, settings: Settings, saved: Saved
    ) -> None:
        self.number = number
        self.saved = saved
        self.view: list[int] = []
        self.frozen = False
        self.stopping = False
        self.ahead = 0
        """How far its wall clock is ahead of the right time, in milliseconds."""
        self.in_round = False
        self._world = world
        self._dice = settings.dice
        self._cluster = cluster
        self._rules: Rules = settings.rules
        self._most_parked = settings.most_parked
        self._room = settings.room
        self._losses = settings.losses
        self._settings = settings
        self._begin_anew()
        self.running: dict[int, Owned] = {}
        self._starting: dict[int, Thread] = {}
        self._not_before: dict[int, int] = {}
        self._reading: Thread | None = None
        self._positions: dict[Log, int] = {}
        self._moves = 0
        """Counts the changes of the positions."""
        self.threads: list[Thread] = []
        self.main = self._spawn("rounds", self._run())

    def moment(self) -> Moment:
        """What its clocks say."""
        return Moment(self._world.now + self.ahead, self._world.now)

    def _begin_anew(self) -> None:
        """Note which topics these are, and follow from what is saved."""
        self._topics = self._world.generations
        self._checked = self._world.now
        self.follower = Follower(self._world, self._settings, self.saved, self._topics)
        self.barriers = Barriers(self._world, self._dice, self._rules, self.follower, self.moment)

    def _check(self) -> None:
        """Raises Recreated."""
        if self._world.generations is not self._topics:
            raise Recreated
        self._checked = self._world.now

    def out_of_range(self, topic: str) -> None:
        """Its reader stands behind the end of a topic and so goes back to the start."""
        for log in self._positions:
            if log.place.topic == topic and self._dice.random() < 0.5:
                self._positions[log] = 0
                self._moves += 1

    def _spawn(self, name: str, run: Step[Any]) -> Thread:
        thread = Thread(name, run)
        self.threads.append(thread)
        return thread

    def _end(self, thread: Thread) -> None:
        if not thread.done:
            thread.done = True
            self.threads.remove(thread)

    def _say(self, text: str) -> None:
        if self._world.trace:
            self._world.trace(text)

    # --- rounds -------------------------------------------------------------------------------

    def _run(self) -> Step[None]:
        while not self.stopping:
            following = self._spawn("follower", self.follower.run())
            self._cluster.join(self)
            try:
                yield from self._rounds()
            except Recreated:
                self.in_round = False
                self._say("begins again: a topic was created anew")
            yield from self._take(wait=True)
            yield from self._drop_all()
            self._cluster.leave(self)
            self._end(following)
            self._positions = {}
            self._begin_anew()

    def _rounds(self) -> Step[None]:
        """Work on the topics as they are. Raises Recreated when they are no longer."""
        while not self.stopping:
            try:
                self.in_round = True
                yield from self._round()
                self.in_round = False
            except Outage as error:
                self.in_round = False
                self._say(f"outage: {error}")
                yield from self._drop_all()
                yield from self._assign()
                until = self._world.now + _BACKOFF
                # The default has the moment of this round kept; it has no type of its own.
                yield lambda until=until: self._world.now >= until  # type: ignore[misc]
        for owned in list(self.running.values()):
            yield from self._farewell(owned)

    def _round(self) -> Step[None]:
        if self._world.now - self._checked >= LOOK_EVERY:
            self._check()
        if (yield from self._update()):
            yield from self._assign()
        if not self.follower.ready:
            now = self._world.now
            yield lambda: self.follower.ready or self._world.now > now
            return
        running = self.running
        yield from self.barriers.tend([owned.task for owned in running.values()])
        learned = self.follower.learned()
        if learned.users or learned.matches:
            for owned in running.values():
                owned.learned.users.extend(learned.users)
                owned.learned.matches.extend(learned.matches)
        yield from self._read()
        batches = [
            (owned, self._batch(owned))
            for owned in running.values()
            if owned.work is None and self._has_work(owned)
        ]
        if batches:
            self._begin(batches)

    def _read(self) -> Step[None]:
        if self._reading is None:
            self._reading = self._spawn("read", self._reads(self._paused()))
        reading, follower = self._reading, self.follower
        work = [owned.work for owned in self.running.values() if owned.work is not None]

        def ready() -> bool:
            if reading.done or follower.news:
                return True
            for some in work:  # noqa: SIM110 -- asked more often than anything else
                if some.done:
                    return True
            return False

        yield ready
        follower.news = False
        for number, owned in list(self.running.items()):
            if owned.work is not None and owned.work.done:
                goes_on = owned.work.value
                owned.work = None
                if goes_on is None:
                    raise Recreated
                if not goes_on:
                    yield from self._drop(number, "commit failed")
                    self._not_before[number] = self._world.now + _BACKOFF
                    yield from self._assign()
        if reading.done:
            yield from self._take(wait=False)

    def _take(self, *, wait: bool) -> Step[None]:
        reading = self._reading
        if reading is None or not (wait or reading.done):
            return
        if not reading.done:
            yield lambda: reading.done
        self._reading = None
        for message in reading.value:
            owned = self.running.get(message.partition)
            if owned is not None:
                owned.inbox.append(message)

    def _reads(self, paused: set[Log]) -> Step[list[Message]]:
        """One read: what there is, or nothing once some time has passed."""
        world, positions, dice = self._world, self._positions, self._dice
        started = world.now
        listened = [log for log in positions if log not in paused] if paused else list(positions)
        more = world.more(positions, listened)
        yield lambda: world.now > started or more()
        logs = [log for log in listened if positions[log] < log.stable] if more() else []
        messages: list[Message] = []
        if dice.fineness and len(logs) > 1:
            dice.shuffle(logs)
            logs = logs[: 1 + dice.below(len(logs))]
        if logs:
            self._moves += 1
        for log in logs:
            limit = 1 + dice.below(6) if dice.fineness else 1_000_000
            some, positions[log] = log.read(positions[log], limit)
            messages += some
        if self._world.trace and messages:
            seen = " ".join(
                f"{m.topic.partition('.')[2]}/{m.partition}@{m.offset}" for m in messages
            )
            self._world.trace(f"reads {seen}")
        return messages

    def _assign(self) -> Step[None]:
        yield from self._take(wait=True)
        wanted: dict[Log, int] = {}
        for owned in self.running.values():
            for name, log in owned.inputs.items():
                wanted[log] = (
                    self._positions[log] if owned.assigned else owned.task.reading.next[name]
                )
            owned.assigned = True
        self._positions = wanted
        self._moves += 1

    def _batch(self, owned: Owned) -> Batch:
        messages, owned.inbox = owned.inbox, []
        owned.looked = self._moves
        owned.positions = self._places(owned)
        return Batch(messages, owned.positions)

    def _has_work(self, owned: Owned) -> bool:
        return bool(
            owned.inbox
            or owned.learned.users
            or owned.learned.matches
            or owned.task.restored
            or owned.task.can_give_up
            or owned.task.has_to_keep(self.moment())
            or (owned.looked != self._moves and owned.positions != self._places(owned))
        )

    def _places(self, owned: Owned) -> dict[str, int]:
        return {name: self._positions[log] for name, log in owned.inputs.items()}

    # --- work ---------------------------------------------------------------------------------

    def _begin(self, batches: list[tuple[Owned, Batch]]) -> None:
        """Start the work on each task's batch."""
        for owned, batch in batches:
            owned.work = self._spawn(f"work {owned.task.number}", self._work(owned, batch))

    def _work(self, owned: Owned, batch: Batch) -> Step[bool | None]:
        """Judge and commit; whether the task may go on, None if no task of the worker may."""
        try:
            self._check()  # as early as it may be: after what the batch holds was read
            if self._dice.stop():
                yield None  # the index is being written to
            index, now = self.follower.index, self.moment()
            asks = owned.task.needs_synchronised(batch.messages, index, now)
            if asks:
                yield from self._synchronise()
                if self._dice.stop():
                    yield None
            decision = self._judge(owned, batch, synchronised=asks)
            if decision.outputs:
                yield from self._commit(owned, decision)
                if owned.missed.parked:  # and nobody else had come: the log fitted together
                    raise Broken(f"parked records were lost: {owned.missed.parked}")
        except (Fenced, Outage) as error:
            self._say(f"task {owned.task.number} fails: {error!r}")
            return False
        except Recreated:
            return None
        return True

    def _synchronise(self) -> Step[None]:
        """Have the index show every row that is committed by now. Raises Outage."""
        follower = self.follower
        until = yield from ends(self._dice, follower.accepted, uncommitted=True)
        yield from follower.reach(until)

    def _judge(self, owned: Owned, batch: Batch, *, synchronised: bool) -> Decision:
        learned, owned.learned = owned.learned, Learned([], [])
        ahead = Ahead(self.follower.index)
        messages, positions = batch
        decision = owned.task.judge(
            messages, positions, learned, ahead, self.moment(), synchronised=synchronised
        )
        if self._world.trace and (messages or decision.outputs):
            self._world.trace(
                f"task {owned.task.number} judges {len(messages)} messages, synced {synchronised}: "
                f"{len(decision.outputs)} outputs"
            )
        return decision

    def _commit(self, owned: Owned, decision: Decision) -> Step[None]:
        """One transaction, its partitions written in any order. Raises Fenced and Outage."""
        world, dice, number = self._world, self._dice, owned.task.number
        yield lambda: world.settled(number) or not world.is_writer(number, owned.epoch)
        transaction = world.begin(number, owned.epoch, self._topics)
        yield from self._write(transaction, decision)
        world.commit(transaction)
        if dice.fineness and dice.random() < self._losses:
            raise Outage("the answer to the commit is lost")
        if dice.stop():
            yield None

    def _farewell(self, owned: Owned) -> Step[None]:
        """Have the log keep what is held, before the worker stops."""
        work = owned.work
        if work is not None:
            yield lambda: work.done
            if not work.value:
                return
        try:
            while outputs := owned.task.farewell(self.moment()):
                self._check()
                yield from self._commit(owned, Decision(outputs, Tally()))
        except (Fenced, Outage, Recreated) as error:
            self._say(f"task {owned.task.number} keeps no more: {error!r}")

    def _write(self, transaction: Transaction, decision: Decision) -> Step[None]:
        world, dice = self._world, self._dice
        parts: dict[tuple[str, int], list[Outgoing]] = {}
        for message in decision.outputs:
            parts.setdefault((message.topic, world.number_of(message)), []).append(message)
        places = sorted(parts)
        if dice.fineness:
            dice.shuffle(places)
        for place in places:
            if dice.stop():
                yield None
            world.write(transaction, world.log(*place), parts[place])
        if dice.stop():
            yield None

    def _paused(self) -> set[Log]:
        paused: set[Log] = set()
        for owned in self.running.values():
            if owned.task.parking:
                found = crowded(owned.task.parking, self._most_parked, self._room)
                paused.update(owned.inputs[name] for name in found)
        return paused

    # --- tasks --------------------------------------------------------------------------------

    def _update(self) -> Step[bool]:
        assigned = self._cluster.assignment(self)
        if not self._starting and self.running.keys() == set(assigned):
            return False
        changed = False
        for number in [n for n in self.running if n not in assigned]:
            yield from self._drop(number, "revoked")
            changed = True
        for number in [n for n in self._starting if n not in assigned]:
            self._end(self._starting.pop(number))
        for number in assigned:
            if number in self.running or number in self._starting:
                continue
            if self._world.now >= self._not_before.get(number, 0):
                start = take_over(number, self._world, self._settings, self._topics, self.moment)
                self._starting[number] = self._spawn(f"start {number}", start)
        for number in [n for n, start in self._starting.items() if start.done]:
            self.running[number] = self._starting.pop(number).value
            changed = True
        return changed

    def _drop(self, number: int, why: str) -> Step[None]:
        owned = self.running.pop(number, None)
        if owned is None:
            return
        self._say(f"drops task {number}: {why}")
        work = owned.work
        if work is not None and not work.done:
            yield lambda: work.done

    def _drop_all(self) -> Step[None]:
        for start in self._starting.values():
            self._end(start)
        self._starting = {}
        for number in list(self.running):
            yield from self._drop(number, "all")
