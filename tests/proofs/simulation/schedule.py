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
from unittest.mock import patch
from uuid import UUID

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.log import Transaction
from tests.proofs.simulation.logs import logging_to
from tests.proofs.simulation.loop import VirtualLoop
from tests.proofs.simulation.machine import START_OF_TIME, Machine
from tests.proofs.simulation.promises import INDEXED, Broken, Promises
from tests.proofs.simulation.settings import settings
from tests.proofs.simulation.trouble import Trouble
from tests.proofs.simulation.upstream import Upstream
from tests.proofs.simulation.weather import Conditions, SeededWeather
from worker.core.keys import id_bytes
from worker.core.known import address_digest
from worker.core.topics import wanted
from worker.stream import Message

_TURN: Final = 5
"""Steps between two turns of whoever makes things happen."""
_PULSE_SECONDS: Final = 0.25
_MOMENT: Final = 5_000
"""Milliseconds within which a frontier is noted and passed where nobody is hindered, and what
has failed is tried again."""
_LONGEST_CHAIN: Final = 30
"""So many records wait for each other's verdicts, one after the other, at most."""
_REST_SECONDS: Final = 2.0


class Run:
    """One seed. `play` it once."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.settings = settings(seed)
        self._dice = self.settings.dice
        here = f"{socket.gethostname()}/{os.getpid()}"  # the books name who works
        self._trace = trace and (lambda line: trace(line.replace(here, "here")))
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
        self._trouble = Trouble(
            self._conditions,
            self._cluster,
            self._machines,
            self._upstream,
            self.promises,
            self._say,
        )
        self._encore = self.settings.encore

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
        names = random.Random(self.settings.seed)

        def name() -> UUID:
            return UUID(int=names.getrandbits(128), version=4)

        collects = gc.isenabled()
        gc.disable()
        try:
            with logging_to(self._trace), patch("worker.engine.session.uuid.uuid4", name):
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
            **self._trouble.counts,
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
        self._trouble.note(transaction)

    def _read(self, messages: Sequence[Message]) -> None:
        self.promises.records.note_read(messages, self._now())

    # --- turns --------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Something happens, or nothing."""
        chance = self._dice.random()
        self._bury_the_dead()
        if self._upstream.done:
            self._encore -= 1
        if chance < self.settings.pace:
            if not self._upstream.done:
                self._send()
        elif chance < self.settings.pace + self._trouble.risk:
            self._trouble.strike()
        elif chance > 0.97 - self.settings.faults:
            self._trouble.mend()

    def _pulse(self) -> None:
        """A turn now and then also where nobody works."""
        self._loop.on_step()
        self._conditions.later(_PULSE_SECONDS, self._pulse)

    def _send(self) -> None:
        self._say("upstream")
        while self._upstream.send() and not self._upstream.done:
            if self._dice.random() < 0.6:
                return

    def _running(self) -> list[Machine]:
        return [machine for machine in self._machines if machine.runs]

    def _bury_the_dead(self) -> None:
        for machine in self._machines:
            if machine.has_ended:
                machine.bury()

    # --- the end ------------------------------------------------------------------------------

    def _heal(self) -> None:
        self._say("heal")
        self._conditions.fine = self._conditions.healed = True
        self._loop.every, self._loop.haste = 1_000, 0.0
        self._loop.on_step = self._tend
        for machine in self._machines:
            if machine.process is None and self._running():
                continue  # one is enough
            machine.repair()
            machine.network.cut_until = 0.0
        for group in self._cluster.groups.values():
            group.share()

    def _tend(self) -> None:
        """Somebody works again, whatever had been told to end."""
        self._bury_the_dead()
        if not self._running():
            self._machines[0].repair()

    def _settle(self) -> None:
        """Go on until everything is decided and nothing more happens. Raises Broken."""
        patience = self._patience() / 1000
        if not self._loop.run(self._is_done, patience):
            raise Broken(f"after {patience:.0f} s without faults there is left: {self._left()}")
        tick = self._cluster.tick
        self._loop.run(lambda: False, _REST_SECONDS)
        moved = tick != self._cluster.tick or self._left()  # a worker may have begun anew meanwhile
        if moved and not self._loop.run(self._is_done, patience):
            raise Broken(f"it never comes to rest: {self._left()}")

    def _is_done(self) -> bool:
        self._tend()
        return not self._left()

    def _left(self) -> object:
        """What is still to happen, if anything."""
        return (
            self._trouble.gone
            or self._trouble.operators
            or self.promises.missing()
            or self._cluster.open_transactions()
            or self.promises.internals.left(self._cluster)
            or [m.number for m in self._running() if not self._is_current(m)]
        )

    def _is_current(self, machine: Machine) -> bool:
        """Whether its index shows all that is accepted."""
        names, at = self.settings.rules.names, machine.disk.at
        logs = [log for e in INDEXED for log in self._cluster.logs_of(names.accepted(e))]
        return not any(log.read(at.get(log.place, 0), 1)[0] for log in logs)

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
