"""A run: the seed decides who goes on next, until all is sent; then all is healed and ends.

A worker goes on wherever it may; it is killed, frozen, cut off or told to stop between any two
of its steps. What it had in memory is lost, what it had open stays open until somebody else
becomes the writer, or the broker gives it up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.simulation.actors import LOOK_EVERY, Worker
from tests.simulation.following import Saved
from tests.simulation.group import Cluster
from tests.simulation.promises import Broken, Promises
from tests.simulation.settings import settings
from tests.simulation.threads import Outage, Thread
from tests.simulation.upstream import Upstream
from tests.simulation.world import TRANSACTION_LIMIT, World
from worker.core.keys import id_bytes
from worker.index.contract import address_digest

_MOST_STEPS: Final = 3_000
_MOST_JUMPS: Final = 200
_MOMENT: Final = 250
"""Milliseconds within which a barrier is noted and passed, where nobody is hindered."""
_LONGEST_CHAIN: Final = 30
"""So many records wait for each other's verdicts, one after the other, at most."""
_QUIET: Final = 3
"""Jumps of the clock after which nothing is expected to happen any more."""

_FAULTS: Final = (
    "killed",
    "frozen",
    "cut off",
    "stopped",
    "rebalances",
    "clocks set",
    "topics created anew",
)

_RECREATED: Final = (*2 * ("users", "matches"), "checkins", "events", "claims", "grants")

_HOUR: Final = 3_600_000
_WRONG: Final = (-24 * _HOUR, -_HOUR, -5_000, 0, 0, 5_000, _HOUR, 24 * _HOUR)
"""How far a wall clock is ahead once somebody has set it: mostly by too much, or right again."""

_HOURS: Final = (1, 20, 60, 250, 250, 700)


class Run:
    """One seed. `play` it once."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.settings = settings(seed)
        self.steps = 0
        self._faults_done = dict.fromkeys(_FAULTS, 0)
        self._dice = self.settings.dice
        self._chance = self._dice.random
        self._pace = self.settings.pace
        self._fault = 0.16 + self.settings.faults * 0.4
        self._mends = 0.17 + self.settings.faults
        self.promises = Promises(self.settings)
        self._world = self.promises.world = World(
            self.settings.rules.tasks, self.promises.committed
        )
        self._world.trace = trace
        self._cluster = Cluster(self._dice, self.settings.rules.tasks)
        self._upstream = Upstream(self._world, self.settings)
        self._ahead = [0] * self.settings.workers
        """How far the wall clock of each worker's machine is ahead, also after a restart."""
        self._workers = [self._worker(n, Saved()) for n in range(self.settings.workers)]
        self._awake = list(self._workers)
        """Those that are not frozen, in the order of the workers."""
        self._dead: list[tuple[int, Saved]] = []
        self._faults = [self._kill, self._freeze, self._cut_off, self._stop, self._rebalance]
        if self.settings.clocks:
            self._faults.append(self._set_clock)
        if self.settings.recreated:
            self._faults += [self._create_anew] * 2

    def _worker(self, number: int, saved: Saved) -> Worker:
        worker = Worker(number, self._world, self._cluster, self.settings, saved)
        worker.ahead = self._ahead[number]
        return worker

    def play(self) -> None:
        """The whole run. Raises Broken, or whatever the core raises."""
        if self.settings.warm:
            self._exhaust()
        self._dice.fineness = self.settings.fineness
        while not self._upstream.done:
            self._step()
        for _ in range(self.settings.encore):
            self._step()
        self._heal()
        healed = self._world.now
        if not self.settings.ordered:
            self._settle(1_000)
            if self.settings.is_roomy:  # else what is paused waits
                self.promises.check_released()
        self._settle(self.settings.rules.grace + _MOMENT)
        self.promises.check()
        self._check_lateness(healed)
        self._check_workers()

    def counts(self) -> dict[str, int]:
        """What happened in the run, for sums over many."""
        world = self._world.counts
        return {
            **self.promises.counts(),
            **self._faults_done,
            "takeovers": world["takeovers"],
            "transactions committed": world["committed"],
            "aborted": world["aborted"],
            "fenced": world["fenced"],
            "steps": self.steps,
        }

    def _say(self, text: str) -> None:
        if self._world.trace:
            self._world.trace(f"{self.steps} +{self._world.now % 10_000_000} {text}")

    # --- steps --------------------------------------------------------------------------------

    def _step(self) -> None:
        self.steps += 1
        chance = self._chance()
        if chance >= 0.35:  # most steps are of this kind
            self._go_on()
        elif chance < self._pace:
            if not self._upstream.done:
                self._send()
        elif chance < 0.16:
            self._pass_time(self._dice.choice(_HOURS))
        elif chance < self._fault:
            self._dice.choice(self._faults)()
        elif chance < self._mends:
            self._mend()
        elif self._world.unmarked:
            self._world.mark(self._dice.below(len(self._world.unmarked)))
        else:
            self._go_on()

    def _send(self) -> None:
        if self._world.trace:
            self._say("upstream")
        sent = self._upstream.send()
        self.promises.note(sent)

    def _pass_time(self, milliseconds: int) -> None:
        self._world.now += milliseconds
        self._world.expire()

    def _go_on(self) -> None:
        """Some thread of some worker that can: a few of its steps, or one."""
        if not self._awake:
            return
        worker = self._dice.choice(self._awake)
        threads = worker.threads
        first = int(self._chance() * len(threads))
        for place in range(first - len(threads), first):  # from the first on, and then around
            thread = threads[place]
            if thread.waits is None or thread.waits():
                if self._world.trace:
                    self._say(f"worker {worker.number} {thread.name}")
                thread.step()
                if thread.done:
                    self._end(worker, thread)
                return

    def _advance(self, worker: Worker, thread: Thread, error: Exception | None = None) -> None:
        if self._world.trace:
            self._say(f"worker {worker.number} {thread.name}")
        thread.step(error)
        if thread.done:
            self._end(worker, thread)

    def _end(self, worker: Worker, thread: Thread) -> None:
        worker.threads.remove(thread)
        if thread is worker.main:
            self._bury(worker)

    def _wake(self) -> None:
        """Find out anew who is awake: somebody has come, gone, frozen or thawed."""
        self._awake = [worker for worker in self._workers if not worker.frozen]

    # --- faults -------------------------------------------------------------------------------

    def _kill(self) -> None:
        if self._workers:
            worker = self._dice.choice(self._workers)
            self._say(f"kill worker {worker.number}")
            self._faults_done["killed"] += 1
            self._bury(worker)
            if self._dice.random() < 0.5:
                self._cluster.leave(worker)

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._wake()
        saved = worker.saved if self._dice.random() < 0.5 else Saved()
        self._dead.append((worker.number, saved))

    def _freeze(self) -> None:
        """A worker goes on only later; meanwhile the others may be given its tasks."""
        if self._workers:
            worker = self._dice.choice(self._workers)
            worker.frozen = True
            self._wake()
            evicted = self._dice.random() < 0.8
            self._say(f"freeze worker {worker.number}, evicted: {evicted}")
            self._faults_done["frozen"] += 1
            if evicted:
                self._cluster.leave(worker)

    def _cut_off(self) -> None:
        """The broker cannot be reached in the middle of a round."""
        cut = [w for w in self._workers if not w.frozen and w.in_round]
        if cut:
            worker = self._dice.choice(cut)
            busy = [thread for thread in worker.threads if thread.begun and thread.can_fail]
            thread = self._dice.choice(busy)
            self._say(f"cut off worker {worker.number}: {thread.name}")
            self._faults_done["cut off"] += 1
            self._advance(worker, thread, Outage("cut off"))

    def _stop(self) -> None:
        if self._workers:
            worker = self._dice.choice(self._workers)
            self._say(f"stop worker {worker.number}")
            self._faults_done["stopped"] += 1
            worker.stopping = True

    def _rebalance(self) -> None:
        self._say("rebalance")
        self._faults_done["rebalances"] += 1
        if self._dice.random() < 0.3:
            self._pass_time(TRANSACTION_LIMIT)
        self._cluster.rebalance()

    def _set_clock(self) -> None:
        """The wall clock of a worker's machine jumps; no time passes."""
        if self._workers:
            worker = self._dice.choice(self._workers)
            worker.ahead = self._ahead[worker.number] = self._dice.choice(_WRONG)
            self._say(f"the clock of worker {worker.number} is ahead by {worker.ahead}")
            self._faults_done["clocks set"] += 1

    def _create_anew(self) -> None:
        """An input is deleted and created anew, at times while nobody works, and sent to again."""
        name = self._dice.choice(_RECREATED)
        topic = self.settings.rules.names.input(name)
        if self._faults_done[
            "topics created anew"
        ] == self.settings.recreated or self._world.is_open(topic):
            return
        self._faults_done["topics created anew"] += 1
        if self._dice.random() < 0.3:
            for worker in list(self._workers):
                self._bury(worker)
                self._cluster.leave(worker)
        self._say(f"creates {topic} anew")
        self._world.create_anew(topic)
        for worker in self._workers:
            worker.out_of_range(topic)
        for sent in self._upstream.again(name, self._dice.choice((0, 0, 3, 1_000))):
            self.promises.note(sent)

    def _mend(self) -> None:
        """Something that was dead or frozen goes on."""
        frozen = [worker for worker in self._workers if worker.frozen]
        if frozen and (not self._dead or self._dice.random() < 0.5):
            worker = self._dice.choice(frozen)
            self._say(f"thaw worker {worker.number}")
            worker.frozen = False
            self._wake()
        elif self._dead:
            number, saved = self._dead.pop(self._dice.below(len(self._dead)))
            self._say(f"start worker {number}")
            self._workers.append(self._worker(number, saved))
            self._wake()

    # --- the end ------------------------------------------------------------------------------

    def _heal(self) -> None:
        self._say("heal")
        self._dice.fineness = 0.0
        self._world.eager = True
        self._world.mark_all()
        for worker in list(self._workers):
            worker.frozen = False
            if worker.stopping:
                self._bury(worker)
        if not self._workers:
            self._workers.append(self._worker(*self._dead.pop()))
        alive = set(map(id, self._workers))
        self._cluster.members = [w for w in self._cluster.members if id(w) in alive]
        self._cluster.rebalance()
        if self.settings.recreated:  # also those with nothing to do find out
            self._pass_time(LOOK_EVERY)

    def _settle(self, patience: int) -> None:
        """Go on until nothing happens however often so much time passes. Raises Broken."""
        quiet = 0
        for _ in range(_MOST_JUMPS):
            tick = self._world.tick
            self._exhaust()
            blocked = any(self._world.open_transactions())
            self._pass_time(TRANSACTION_LIMIT if blocked else patience)
            # Each by one worker, which has looked at what it has restored.
            owned = self._running() == list(range(self._world.tasks)) and not any(
                owned.task.restored for w in self._workers for owned in w.running.values()
            )
            if tick != self._world.tick or blocked or not owned:
                quiet = 0
            else:
                quiet += 1
            if quiet == _QUIET:
                return
        raise Broken("it never comes to rest")

    def _running(self) -> list[int]:
        """The tasks that run, by all workers."""
        return sorted(number for worker in self._workers for number in worker.running)

    def _exhaust(self) -> None:
        """Let everybody go on for as long as anything can."""
        going = True
        limit = self.steps + _MOST_STEPS
        while going:
            going = False
            for worker in list(self._workers):
                for thread in list(worker.threads):
                    while thread.ready():
                        self.steps += 1
                        self._advance(worker, thread)
                        going = True
            if self.steps > limit:
                raise Broken("it goes round and round")

    def _check_lateness(self, healed: int) -> None:
        """Whatever the clocks had been set to: the longest chain of verdicts is soon at its end."""
        late = self.promises.latest_outcome - healed
        most = _LONGEST_CHAIN * (self.settings.rules.grace + _MOMENT) + TRANSACTION_LIMIT
        if self.settings.ordered and late > most:
            raise Broken(f"the last verdict took {late} ms")

    def _check_workers(self) -> None:
        users, matches = self.promises.rows()
        known = {id_bytes(user): address_digest(address) for user, address in users.items()}
        holders = {address: (user,) for user, address in known.items()}
        for worker in self._workers:
            index = worker.follower.index
            if (
                index._users != known
                or index._holders != holders
                or index._matches != {id_bytes(match) for match in matches}
            ):
                raise Broken(f"the index of worker {worker.number} is not the accepted log")
            if worker.barriers.open:
                raise Broken(f"worker {worker.number} has barriers open")
            for number, owned in worker.running.items():
                self._check_task(number, worker)
                if owned.inbox or owned.work is not None:
                    raise Broken(f"task {number} is not at rest")
        if self._running() != list(range(self._world.tasks)):
            raise Broken(f"running are {self._running()}")
        self._check_parked()

    def _check_task(self, number: int, worker: Worker) -> None:
        task = worker.running[number].task
        parking = task.parking
        if len(parking) or parking._queues or parking._waiting or any(parking._in_grace.values()):
            raise Broken(f"task {number} has something parked")
        if task.reading.left or any(parking._held.values()):
            raise Broken(f"task {number} holds something")
        if len(task.addresses):
            raise Broken(f"task {number} keeps {len(task.addresses)} addresses")
        if granted := self._table(self.settings.rules.names.granted, number):
            raise Broken(f"granted {number} keeps {list(granted)}")

    def _check_parked(self) -> None:
        for number in range(self.settings.rules.tasks):
            if table := self._table(self.settings.rules.names.parked, number):
                raise Broken(f"still parked: {list(table)}")

    def _table(self, topic: str, number: int) -> dict[bytes | None, bytes]:
        log = self._world.log(topic, number)
        table: dict[bytes | None, bytes] = {}
        for message in log.read(0, log.end)[0]:
            if message.value is None:
                table.pop(message.key, None)
            else:
                table[message.key] = message.value
        return table
