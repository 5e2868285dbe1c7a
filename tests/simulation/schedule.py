"""A run: the seed decides who goes on next, until all is sent; then all is healed and ends.

The workers are the real ones (`worker.engine.worker`), each a process of its own on one event
loop with virtual time. Whatever they do is interrupted between any two steps: they are killed,
frozen, cut off or told to stop. What a worker had in memory is lost then; what it had open stays
open until it is fenced, or until the broker gives it up.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Callable, Sequence
from typing import Final

from tests.simulation.broker.cluster import Cluster
from tests.simulation.broker.connection import MemoryBroker
from tests.simulation.broker.log import Transaction
from tests.simulation.logs import logging_to
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.machine import START_OF_TIME, Machine
from tests.simulation.promises import Broken, Promises
from tests.simulation.settings import settings
from tests.simulation.upstream import Upstream
from tests.simulation.weather import Conditions, SeededNetwork, SeededWeather
from worker.brokers.contract import Message
from worker.core.keys import id_bytes
from worker.engine.reprocess import reprocess
from worker.errors import BuddyError
from worker.index.contract import address_digest
from worker.topics import wanted

_TURN: Final = 5
"""Steps between two turns of whoever makes things happen."""
_PULSE_SECONDS: Final = 0.25
_MOMENT: Final = 5_000
"""Milliseconds within which a barrier is noted and passed where nobody is hindered, and what
has failed is tried again."""
_LONGEST_CHAIN: Final = 30
"""So many records wait for each other's verdicts, one after the other, at most."""
_REST_SECONDS: Final = 2.0

_FAULTS: Final = (
    "killed",
    "of these in a commit",
    "frozen",
    "cut off",
    "stopped",
    "rebalances",
    "compactions",
    "clocks set",
    "topics created anew",
    "resets",
)
_RECREATED: Final = (*2 * ("users", "matches"), "checkins", "events", "claims", "grants")

_HOUR: Final = 3_600_000
_WRONG: Final = (-24 * _HOUR, -_HOUR, -5_000, 0, 0, 5_000, _HOUR, 24 * _HOUR)
"""How far a wall clock is ahead once somebody has set it: mostly by too much, or right again."""


class Run:
    """One seed. `play` it once."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.settings = settings(seed)
        self._dice = self.settings.dice
        here = f"{socket.gethostname()}/{os.getpid()}"  # the books name who works
        self._trace = trace and (lambda line: trace(line.replace(here, "here")))
        self._faults_done = dict.fromkeys(_FAULTS, 0)
        # It has what asyncio's own parts ask of a loop, and no sockets, signals or subprocesses.
        self._loop = VirtualLoop(self._dice)  # type: ignore[abstract]
        self._conditions = Conditions(self.settings, self._loop)
        self._weather = SeededWeather(self._conditions)
        self._cluster = Cluster(self._now, self._weather)
        self._cluster.trace = self._trace
        self.promises = Promises(self.settings, self._cluster)
        self._upstream = Upstream(self._cluster, self.settings, self.promises.records)
        self._weather.refused = self._upstream.refuses
        self._machines = [
            Machine(n, self._cluster, self._conditions) for n in range(self.settings.workers)
        ]
        self._gone: list[str] = []
        """Topics that were deleted and are to be created anew."""
        self._operators = 0
        self._encore = self.settings.encore
        self._faults = [
            self._kill,
            self._freeze,
            self._cut_off,
            self._stop,
            self._rebalance,
            self._compact,
        ]
        if self.settings.clocks:
            self._faults.append(self._set_clock)
        if self.settings.recreated:
            self._faults += [self._create_anew] * 2
        if self.settings.resets:
            self._faults += [self._reset] * 2

    @property
    def steps(self) -> int:
        """How many handles have run."""
        return self._loop.steps

    @property
    def virtual_seconds(self) -> float:
        """How long it has taken the workers."""
        return self._loop.time()

    def play(self) -> None:
        """The whole run. Raises Broken, or what a worker has died of."""
        random.seed(self.settings.seed)  # the engine draws its back-off
        collects = gc.isenabled()
        gc.disable()
        try:
            with logging_to(self._trace):
                self._play()
                self._say("every promise is kept")
        finally:
            with logging_to(None):
                for machine in self._machines:
                    if machine.process is not None:
                        machine.process.kill()
            if collects:
                gc.enable()

    def counts(self) -> dict[str, int]:
        """What happened in the run, for sums over many."""
        world = self._cluster.counts
        return {
            **self.promises.counts(),
            **self._faults_done,
            "takeovers": world["takeovers"],
            "transactions committed": world["committed"],
            "aborted": world["aborted"],
            "fenced": world["fenced"],
            "steps": self.steps,
            "virtual seconds": int(self.virtual_seconds),
        }

    def _play(self) -> None:
        self._cluster.on_committed = self._committed
        self._cluster.on_read = self._read
        rules, loop = self.settings.rules, self._loop
        for topic in wanted(rules.names, rules.tasks, rules.record_limit).values():
            self._cluster.create(topic)
        self.promises.internals.note_topics(self._cluster)
        for machine in self._machines:
            machine.start()
        if self.settings.warm:
            loop.run(lambda: False, 1.0)
        self._conditions.fine = False
        loop.every, loop.on_step = _TURN, self._turn
        self._pulse()
        loop.haste = self.settings.fineness * 0.1
        loop.run(lambda: self._upstream.done and self._encore <= 0, 3_600.0)
        self._heal()
        healed = self._now()
        if not self.settings.ordered:
            loop.run(lambda: False, 20.0)
            self.promises.check_released()
        self._settle()
        self.promises.check()
        self._check_lateness(healed)
        self._end()

    def _now(self) -> int:
        return START_OF_TIME + int(self._loop.time() * 1000)

    def _say(self, text: str) -> None:
        if self._trace:
            self._trace(f"{self.steps} +{self._now() - START_OF_TIME} {text}")

    def _committed(self, transaction: Transaction) -> None:
        try:
            self.promises.committed(transaction)
        except Broken as error:
            self._loop.error = error

    def _read(self, messages: Sequence[Message]) -> None:
        self.promises.records.note_read(messages, self._now())

    # --- turns --------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Something happens, or nothing."""
        dice = self._dice
        chance = dice.random()
        for machine in self._machines:
            if machine.process is not None and not machine.runs:
                self._bury(machine)
        if self._upstream.done:
            self._encore -= 1
        if chance < self.settings.pace:
            if not self._upstream.done:
                self._send()
        elif chance < self.settings.pace + self._risk():
            dice.choice(self._faults)()
        elif chance > 0.97 - self.settings.faults:
            self._mend()

    def _risk(self) -> float:
        """How likely a fault is now: in the middle of a commit there is most to be lost."""
        return self.settings.faults * (3 if any(self._cluster.committing()) else 1)

    def _pulse(self) -> None:
        """A turn now and then also where nobody works."""
        self._loop.on_step()
        self._conditions.later(_PULSE_SECONDS, self._pulse)

    def _send(self) -> None:
        self._say("upstream")
        while self._upstream.send() and not self._upstream.done:
            if self._dice.random() < 0.6:
                return

    def _bury(self, machine: Machine) -> None:
        """Its process has ended, or was killed."""
        if machine.runs:
            machine.kill()
        elif machine._run is not None and (error := machine.outcome()) is not None:
            raise error
        machine.process = machine._run = None
        if self._dice.random() < 0.5:
            machine.lose_disk()

    # --- faults -------------------------------------------------------------------------------

    def _running(self) -> list[Machine]:
        return [machine for machine in self._machines if machine.runs]

    def _some(self) -> Machine | None:
        running = self._running()
        origins = [transaction.origin for transaction in self._cluster.committing()]
        busy = [machine for machine in running if machine.network in origins]
        if busy and self._dice.random() < 0.7:
            running = busy
        return self._dice.choice(running) if running else None

    def _done(self, what: str, text: str) -> None:
        self._faults_done[what] += 1
        self._say(text)

    def _kill(self) -> None:
        if (machine := self._some()) is not None:
            if any(t.origin is machine.network for t in self._cluster.committing()):
                self._faults_done["of these in a commit"] += 1
            self._done("killed", f"kill worker {machine.number}")
            self._bury(machine)
            self._lapse(machine)

    def _lapse(self, machine: Machine) -> None:
        """The group gives up a member of which it hears nothing, at some moment."""
        broker = machine.broker

        def give_up() -> None:
            for member in broker._members:
                member.lapse()

        self._conditions.later(self._dice.choice((0.0, 0.0, 0.2, 2.0)), give_up)

    def _freeze(self) -> None:
        """A worker goes on only later; meanwhile the others may be given its tasks."""
        if (machine := self._some()) is not None and not machine.frozen:
            assert machine.process is not None
            machine.process.freeze()
            evicted = self._dice.random() < 0.8
            self._done("frozen", f"freeze worker {machine.number}, evicted: {evicted}")
            if evicted:
                self._lapse(machine)

    def _cut_off(self) -> None:
        """The broker cannot be reached, by one or by all."""
        long = self._dice.choice((0.0, 0.05, 0.5, 2.0))
        one = self._some()
        for machine in [one] if one and self._dice.random() < 0.7 else self._running():
            self._done("cut off", f"cut off worker {machine.number} for {long} s")
            machine.network.cut_until = self._loop.time() + long + 0.001

    def _stop(self) -> None:
        if (machine := self._some()) is not None:
            self._done("stopped", f"stop worker {machine.number}")
            machine.stop()

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

    def _set_clock(self) -> None:
        """The wall clock of a worker's machine jumps; no time passes."""
        machine = self._dice.choice(self._machines)
        machine.ahead = self._dice.choice(_WRONG)
        self._done("clocks set", f"the clock of worker {machine.number} is ahead {machine.ahead}")

    def _create_anew(self) -> None:
        """An input is deleted and created anew, at times while nobody works, and sent to again."""
        name = self._dice.choice(_RECREATED)
        topic = self.settings.rules.names.input(name)
        done = self._faults_done["topics created anew"]
        is_open = topic in self._gone or any(log.is_open for log in self._cluster.logs_of(topic))
        if done == self.settings.recreated or is_open:
            return
        if self._dice.random() < 0.3:
            for machine in self._running():
                self._bury(machine)
                self._lapse(machine)
        self._done("topics created anew", f"deletes {topic}")
        old = self._cluster.delete(topic)
        self._gone.append(topic)

        def create() -> None:
            self._gone.remove(topic)
            self._say(f"creates {topic} anew")
            self._cluster.create(old)
            self.promises.internals.note_topics(self._cluster)
            self._upstream.again(name, self._dice.choice((0, 0, 3, 1_000)))

        if self._dice.random() < 0.5:
            create()
        else:
            self._conditions.later(self._dice.random() * 2, create)

    def _reset(self) -> None:
        """An operator has records judged again."""
        if self._faults_done["resets"] == self.settings.resets or self._gone or self._operators:
            return
        names = self.settings.rules.names
        entity = self._dice.choice(("users", "users", "matches", "checkins"))
        number = self._dice.below(self.settings.rules.tasks)
        topic = names.inputs(entity)
        offset = self._dice.below(1 + self._cluster.logs[topic, number].end)
        self._done("resets", f"resets {topic}/{number} to {offset}")
        self.promises.records.reset(entity, number, offset, self._cluster.generations[topic])
        operator = Process("operator", self._loop)
        broker = MemoryBroker(self._cluster, SeededNetwork(self._conditions, operator))
        self._operators += 1

        async def work() -> None:
            try:
                await reprocess(broker, names, entity, {number: offset})
            except BuddyError as error:
                self._say(f"the reset failed: {error}")
            finally:
                self._operators -= 1

        operator.spawn(work())

    def _mend(self) -> None:
        """Something that was dead or frozen goes on."""
        broken = [m for m in self._machines if m.frozen or m.process is None]
        if broken:
            self._repair(self._dice.choice(broken))

    def _repair(self, machine: Machine) -> None:
        if machine.process is None:
            self._say(f"start worker {machine.number}")
            machine.start()
        elif machine.frozen:
            self._say(f"thaw worker {machine.number}")
            machine.process.thaw()

    # --- the end ------------------------------------------------------------------------------

    def _heal(self) -> None:
        self._say("heal")
        self._conditions.fine = self._conditions.healed = True
        self._loop.every, self._loop.haste = 1_000, 0.0
        self._loop.on_step = self._tend
        for machine in self._machines:
            if machine.process is None and self._running():
                continue  # one is enough
            self._repair(machine)
            machine.network.cut_until = 0.0
        for group in self._cluster.groups.values():
            group.share()

    def _tend(self) -> None:
        """Somebody works again, whatever had been told to end."""
        for machine in self._machines:
            if machine.process is not None and not machine.runs:
                self._bury(machine)
        if not self._running():
            self._repair(self._machines[0])

    def _settle(self) -> None:
        """Go on until everything is decided and nothing more happens. Raises Broken."""
        patience = self._patience() / 1000
        if not self._loop.run(self._is_done, patience):
            self._tend()
            left = self.promises.missing() or self.promises.internals.left(self._cluster)
            raise Broken(f"after {patience:.0f} s without faults there is left: {left}")
        tick = self._cluster.tick
        self._loop.run(lambda: False, _REST_SECONDS)
        if tick != self._cluster.tick and not self._loop.run(self._is_done, patience):
            raise Broken("it never comes to rest")

    def _is_done(self) -> bool:
        self._tend()
        return not (
            self._gone
            or self._operators
            or self._cluster.open_transactions()
            or self.promises.missing()
            or self.promises.internals.left(self._cluster)
            or not all(map(self._is_current, self._running()))
        )

    def _is_current(self, machine: Machine) -> bool:
        """Whether its index shows all that is accepted."""
        at = machine.disk.at
        return bool(at) and all(self._cluster.log(p).end == offset for p, offset in at.items())

    def _patience(self) -> int:
        """Milliseconds after which the longest chain of verdicts is at its end."""
        if not self.settings.ordered:
            return 2 * self.settings.rules.grace
        limit = int(self.settings.limit * 1000)
        return _LONGEST_CHAIN * (self.settings.rules.grace + _MOMENT) + limit

    def _check_lateness(self, healed: int) -> None:
        """Whatever the clocks had been set to."""
        late = self.promises.latest_outcome - healed
        if late > self._patience():
            raise Broken(f"the last verdict took {late} ms")

    def _end(self) -> None:
        """All workers stop in order, and nothing comes of that."""
        users, matches = self.promises.rows()
        known = {id_bytes(user): address_digest(address) for user, address in users.items()}
        holders = {address: (user,) for user, address in known.items()}
        content = known, holders, {id_bytes(match) for match in matches}
        running = self._running()
        self._loop.on_step = lambda: None  # nobody starts again whoever ends now
        for machine in running:
            if machine.disk.content() != content:
                raise Broken(f"the index of worker {machine.number} is not the accepted log")
            machine.stop()
        if not self._loop.run(lambda: not self._running(), 60.0):
            raise Broken("a worker does not stop")
        for machine in running:
            if (error := machine.outcome()) is not None:
                raise error
        self.promises.check()
        if left := self.promises.internals.left(self._cluster):
            raise Broken(f"after the last worker {left}")
