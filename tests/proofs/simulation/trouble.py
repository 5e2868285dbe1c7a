"""What goes wrong in a run: each fault is drawn, strikes at once and is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.connection import MemoryBroker
from tests.proofs.simulation.broker.log import Transaction
from tests.proofs.simulation.loop import Process
from tests.proofs.simulation.machine import Machine
from tests.proofs.simulation.promises import Promises
from tests.proofs.simulation.upstream import Upstream
from tests.proofs.simulation.weather import Conditions, SeededNetwork
from worker.engine.reprocess import reprocess
from worker.engine.takeover import GIVE_UP_SECONDS
from worker.errors import BuddyError
from worker.stream import ProducerRecord

_RECREATED: Final = (*2 * ("users", "matches"), "checkins", "events", "claims", "grants")

_HOUR: Final = 3_600_000
_WRONG: Final = (-24 * _HOUR, -_HOUR, -5_000, 0, 0, 5_000, _HOUR, 24 * _HOUR)
"""How far a wall clock is ahead once somebody has set it: mostly by too much, or right again."""


class Trouble:
    """The faults of one run. `say` is told of each."""

    def __init__(
        self,
        conditions: Conditions,
        cluster: Cluster,
        machines: Sequence[Machine],
        upstream: Upstream,
        promises: Promises,
        say: Callable[[str], None],
    ) -> None:
        settings = conditions.settings
        self.counts: Counter[str] = Counter()
        self.gone: list[str] = []
        """Topics that were deleted and are to be created anew."""
        self.operators = 0
        """How many operators are at work."""
        self._conditions = conditions
        self._settings = settings
        self._dice = settings.dice
        self._cluster = cluster
        self._machines = machines
        self._upstream = upstream
        self._promises = promises
        self._say = say
        self._faults = [
            self._kill,
            self._freeze,
            self._cut_off,
            self._stop,
            self._rebalance,
            self._compact,
        ]
        if settings.clocks:
            self._faults.append(self._set_clock)
        if settings.senders:
            self._faults += [self._open_transaction] * 2
        if settings.recreated:
            self._faults += [self._create_anew] * 2
        if settings.resets:
            self._faults += [self._reset] * 2

    @property
    def risk(self) -> float:
        """How likely a fault is now: in the middle of a commit there is most to be lost."""
        return self._settings.faults * (3 if self._cluster.committing() else 1)

    def strike(self) -> None:
        """Something goes wrong."""
        self._dice.choice(self._faults)()

    def mend(self) -> None:
        """Something that was dead or frozen goes on."""
        broken = [m for m in self._machines if m.frozen or m.process is None]
        if broken:
            machine = self._dice.choice(broken)
            self._say(f"{machine.repair()} worker {machine.number}")

    # --- processes ----------------------------------------------------------------------------

    def _running(self) -> list[Machine]:
        return [machine for machine in self._machines if machine.runs]

    def _some(self) -> Machine | None:
        running = self._running()
        busy = [machine for machine in running if self._commits(machine)]
        if busy and self._dice.random() < 0.7:
            running = busy
        return self._dice.choice(running) if running else None

    def _commits(self, machine: Machine) -> bool:
        return any(t.origin is machine.network for t in self._cluster.committing())

    def _done(self, what: str, text: str) -> None:
        self.counts[what] += 1
        self._say(text)

    def note(self, transaction: Transaction) -> None:
        """Something is committed. A take-over may be struck before it has fenced and read."""
        ambushes, owners = self._settings.ambushes, self._settings.rules.names.owners
        if not ambushes or self._conditions.fine:
            return
        if all(m.topic != owners or m.value is None for m in transaction.messages):
            return
        if self._dice.random() < ambushes:
            # At any moment until it is done; or when it fences whom it has waited for.
            early, late = 0.2 + self._dice.random(), 1 + self._dice.random() * 0.5
            wait = GIVE_UP_SECONDS * self._dice.choice((early, late))
            self._conditions.later(wait, lambda: self._ambush(transaction.origin))

    def _ambush(self, origin: object) -> None:
        """Whoever takes over dies or stands still, or whom it takes over from goes on."""
        if self._conditions.fine:
            return
        frozen = [m for m in self._running() if m.frozen]
        if frozen and self._dice.random() < 0.5:
            machine = self._dice.choice(frozen)
            self._say(f"{machine.repair()} worker {machine.number}")
            return
        for machine in self._running():
            if machine.network is origin:
                self._dice.choice((self._kill, self._freeze, self._freeze))(machine)

    def _kill(self, machine: Machine | None = None) -> None:
        if (machine := machine or self._some()) is not None:
            self.counts["of these in a commit"] += self._commits(machine)
            self._done("killed", f"kill worker {machine.number}")
            machine.bury()
            machine.lapse()

    def _freeze(self, machine: Machine | None = None) -> None:
        """A worker goes on only later; meanwhile the others may be given its tasks."""
        if (machine := machine or self._some()) is not None and not machine.frozen:
            assert machine.process is not None
            machine.process.freeze()
            evicted = self._dice.random() < 0.8
            self._done("frozen", f"freeze worker {machine.number}, evicted: {evicted}")
            if evicted:
                machine.lapse()

    def _stop(self) -> None:
        if (machine := self._some()) is not None:
            self._done("stopped", f"stop worker {machine.number}")
            machine.stop()

    def _set_clock(self) -> None:
        """The wall clock of a worker's machine jumps; no time passes."""
        machine = self._dice.choice(self._machines)
        machine.ahead = self._dice.choice(_WRONG)
        self._done("clocks set", f"the clock of worker {machine.number} is ahead {machine.ahead}")

    # --- the broker ---------------------------------------------------------------------------

    def _cut_off(self) -> None:
        """The broker cannot be reached, by one or by all."""
        seconds = self._dice.choice((0.0, 0.05, 0.5, 2.0))
        one = self._some()
        for machine in [one] if one and self._dice.random() < 0.7 else self._running():
            self._done("cut off", f"cut off worker {machine.number} for {seconds} s")
            machine.network.cut_until = self._conditions.loop.time() + seconds + 0.001

    def _rebalance(self) -> None:
        self._done("rebalances", "rebalance")
        for group in self._cluster.groups.values():
            for number in range(len(group.owners)):
                group.owners[number] = self._dice.choice(group.members) if group.members else None

    def _compact(self) -> None:
        self._done("compactions", "compaction")
        for log in self._cluster.logs.values():
            if log.topic.compacted and self._dice.random() < 0.5:
                log.compact()

    # --- people -------------------------------------------------------------------------------

    def _open_transaction(self) -> None:
        """A sender opens a transaction in an input, and others send more before it is aborted.

        The sender does that, or the broker once the transaction's time is over. Until then nobody
        can read what others have sent.
        """
        topic = self._settings.rules.names.input(self._dice.choice(("users", "users", "matches")))
        if topic in self.gone or self._upstream.done:
            return
        name = f"sender {self.counts['opened by senders']}"
        self._done("opened by senders", f"{name} opens a transaction in {topic}")
        transaction = self._cluster.begin(name, self._cluster.fence(name), None)
        for log in self._cluster.logs_of(topic):
            message = ProducerRecord(topic, None, b"never committed", partition=log.place.number)
            self._cluster.write(transaction, log, message)
        seconds = self._dice.choice((0.5, 2.0, 20.0))
        self._conditions.later(seconds, lambda: self._cluster.abort(transaction))
        for _ in range(3):
            if not self._upstream.done:
                self._upstream.send()

    def _create_anew(self) -> None:
        """An input is deleted and created anew, at times while nobody works, and sent to again.

        Not while a transaction is open in it.
        """
        name = self._dice.choice(_RECREATED)
        topic = self._settings.rules.names.input(name)
        if self.counts["topics created anew"] == self._settings.recreated or topic in self.gone:
            return
        if any(log.is_open for log in self._cluster.logs_of(topic)):
            return
        if self._dice.random() < 0.3:
            for machine in self._running():
                machine.bury()
                machine.lapse()
        self._done("topics created anew", f"deletes {topic}")
        old = self._cluster.delete(topic)
        self.gone.append(topic)

        def create() -> None:
            self.gone.remove(topic)
            self._say(f"creates {topic} anew")
            self._cluster.create(old)
            self._promises.internals.note_topics(self._cluster)
            self._upstream.again(name, self._dice.choice((0, 0, 3, 1_000)))

        if self._dice.random() < 0.5:
            create()
        else:
            self._conditions.later(self._dice.random() * 2, create)

    def _reset(self) -> None:
        """An operator has records judged again."""
        if self.counts["resets"] == self._settings.resets or self.gone or self.operators:
            return
        names = self._settings.rules.names
        entity = self._dice.choice(("users", "users", "matches", "checkins"))
        number = self._dice.below(self._settings.rules.tasks)
        topic = names.input(entity)
        offset = self._dice.below(1 + self._cluster.logs[topic, number].end)
        self._done("resets", f"resets {topic}/{number} to {offset}")
        generation = self._cluster.generations[topic]
        self._promises.records.reset(entity, number, offset, generation)
        operator = Process("operator", self._conditions.loop)
        if self._dice.random() < 0.5:  # it stands still for a while, in the middle of something
            self._conditions.later(self._dice.random() * 0.1, operator.freeze)
            self._conditions.later(0.1 + self._dice.random() * 1.9, operator.thaw)
        broker = MemoryBroker(self._cluster, SeededNetwork(self._conditions, operator))
        self.operators += 1

        async def work() -> None:
            since = self._cluster.tick
            try:
                await reprocess(broker, names, entity, {number: offset})
                self._promises.records.reset_done(entity, number, offset, since)
            except BuddyError as error:
                self._say(f"the reset failed: {error}")
            finally:
                self.operators -= 1

        operator.spawn(work())
