"""Workers inside the test: on one broker, each with a connection and an index of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas import ENTITIES
from tests.contract.broker_kit import Another, unique
from tests.unit.rows_kit import encode, user, uuid
from worker.brokers.contract import Broker, Committer, Member
from worker.brokers.tables import read_table
from worker.clock import Clock
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.pressure import Limits
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names, wanted
from worker.engine.loop import WorkLoop
from worker.engine.reports import WorkerReports
from worker.engine.session import GROUP, Session
from worker.engine.task_handle import TaskHandle
from worker.engine.worker import Worker
from worker.index.store import IndexStore
from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.stream import Partition, ProducerRecord

PATIENCE = 120.0
"""Seconds within which anything must have happened, also on a machine that is busy otherwise."""

Row = tuple[bytes | None, bytes | None]


class MovingClock(Clock):
    """Time that passes by itself, and faster when told to."""

    def __init__(self) -> None:
        self._forward = 0
        self._stepped = 0
        super().__init__(
            lambda: time.time_ns() // 1_000_000 + self._forward + self._stepped,
            lambda: time.monotonic_ns() // 1_000_000 + self._forward,
        )

    def put_forward(self, milliseconds: int) -> None:
        """Time passes, on both clocks."""
        self._forward += milliseconds

    def step(self, milliseconds: int) -> None:
        """Somebody sets the wall clock; no time passes."""
        self._stepped += milliseconds


def event(n: int, of: int) -> Row:
    row = {
        "event_id": uuid(n),
        "match_id": uuid(of),
        "event_type": "hangout",
        "event_date": "2024-03-01T00:00:00Z",
    }
    return uuid(n).encode(), encode(**row)


def checkin(n: int, of: int) -> Row:
    row = {"checkin_id": uuid(n), "match_id": uuid(of), "checkin_date": "2024-03-02T00:00:00Z"}
    return uuid(n).encode(), encode(**row)


def feedback(n: int, of: int) -> Row:
    row = {
        "feedback_id": uuid(n),
        "match_id": uuid(of),
        "from_role": "buddy",
        "rating": 0.5,
        "submitted_at": "2024-03-03T00:00:00Z",
    }
    return uuid(n).encode(), encode(**row)


class Running:
    """A worker at work. `held` are inputs, by name, that it is kept from reading."""

    def __init__(
        self,
        names: Names,
        broker: Broker,
        directory: Path,
        clock: Clock,
        **options: Any,
    ) -> None:
        self.metrics = Metrics()
        self.health = Health(self.metrics, clock.steady).part("worker")
        self.held: set[str] = set(options.pop("held", ()))
        self.paused: set[Partition] = set()
        self.most: Counter[tuple[int, str]] = Counter()
        """The most that were parked at once, by task and `users`, `matches` or `others`."""
        self.stop = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._names = names
        limits = Limits(**options.pop("limits", {}))
        self.worker = _Watched(
            self._watch,
            broker,
            TaskSettings(names=names, **options),
            IndexStore(directory / "index"),
            clock,
            limits,
            WorkerReports(self.metrics, self.health, clock),
        )
        self.run = asyncio.create_task(self.worker.run(self.stop))

    @property
    def loop(self) -> WorkLoop:
        """The loop on the current topics."""
        assert self.worker.loop is not None
        return self.worker.loop

    @property
    def tasks(self) -> dict[int, TaskHandle]:
        """What runs here, by number."""
        return {} if self.worker.loop is None else self.loop._tasks.running

    @property
    def session(self) -> Session | None:
        """What it writes with now."""
        return self.loop._tasks.session

    @property
    def owner(self) -> str:
        """As whom it writes now; empty before it can."""
        return "" if self.session is None else self.session.owner

    def runs(self, numbers: Collection[int]) -> bool:
        """Whether exactly these tasks run here, and have begun to work."""
        return set(self.tasks) == set(numbers) and not any(
            owned.task.awaits_first_round for owned in self.tasks.values()
        )

    def parked(self, entity: str | None = None) -> int:
        """How many records are parked here."""
        parkings = [owned.task.parking for owned in self.tasks.values()]
        return sum(len(p) if entity is None else p.count(entity) for p in parkings)

    def blocked_by(self) -> set[Partition]:
        """The inputs that the oldest frontier of this worker waits for."""
        return set(self.loop._frontiers.blocked_by())

    def counted(self, name: str, **labels: str) -> float:
        """A metric of this worker."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def freeze(self) -> None:
        """As if the process were stopped: the group gives its tasks to others, unknown to it.

        It goes on to judge, and every commit waits for `thaw`.
        """
        tasks = self.loop._tasks
        self.hold_commits()
        member, tasks._member = tasks._member, _Unaware(tasks.assigned, self._gate)
        assert member is not None
        await member.close()

    def hold_commits(self) -> None:
        """It goes on as a member of the group, and every commit of its session waits for `thaw`."""
        self._gate.clear()
        assert self.session is not None
        assert self.session._committer is not None
        self.session._committer = _Gated(self.session._committer, self._gate)

    def thaw(self) -> None:
        """Let it find out."""
        self._gate.set()

    async def end(self) -> None:
        """Stop it in order. Raises what it died of."""
        self.thaw()
        self.stop.set()
        async with asyncio.timeout(PATIENCE):
            await self.run

    def _watch(self, running: dict[int, TaskHandle], paused: set[Partition]) -> set[Partition]:
        for number, owned in running.items():
            parking = owned.task.parking
            counts = {kind: parking.count(kind) for kind in ("users", "matches")}
            counts["others"] = len(parking) - sum(counts.values())
            for kind, count in counts.items():
                self.most[number, kind] = max(self.most[number, kind], count)
        self.paused = paused
        return paused | {
            Partition(self._names.input(name), number) for name in self.held for number in running
        }


class _Watched(Worker):
    """A worker whose pauses are seen, and set, by `watch`."""

    def __init__(
        self,
        watch: Callable[[dict[int, TaskHandle], set[Partition]], set[Partition]],
        *args: Any,
    ) -> None:
        super().__init__(*args)
        self._watch = watch

    def _new_loop(self) -> WorkLoop:
        loop = super()._new_loop()
        pauses = loop._paused

        def paused(running: dict[int, TaskHandle]) -> set[Partition]:
            return self._watch(running, pauses(running))

        loop._paused = paused  # type: ignore[method-assign]
        return loop


class _Gated:
    """A committer that waits."""

    def __init__(self, committer: Committer, gate: asyncio.Event) -> None:
        self._committer = committer
        self._gate = gate

    async def commit(self, messages: Any, offsets: Any) -> list[tuple[int, int]]:
        await self._gate.wait()
        return await self._committer.commit(messages, offsets)

    async def close(self) -> None:
        await self._committer.close()


class _Unaware:
    """Membership as a worker believes it to be that has been left for dead."""

    def __init__(self, numbers: frozenset[int], gate: asyncio.Event) -> None:
        self._numbers = numbers
        self._gate = gate

    async def assignment(self) -> frozenset[int]:
        return frozenset() if self._gate.is_set() else self._numbers

    async def close(self) -> None:
        pass


class Stage:
    """Topics of its own on the broker, the workers on it, and an eye on every outcome.

    Of each record that `send` wrote the outcomes are known by its coordinate, worded as
    `accepted`, `accepted orphaned_match_id`, `deleted` or `rejected orphaned_user_id`.
    """

    def __init__(self, broker: Broker, another: Another, directory: Path) -> None:
        self.broker = broker
        self.names = Names(unique("w"))
        self.clock = MovingClock()
        """The workers' clock; the broker has its own."""
        self.tasks = 0
        self.outcomes: dict[str, list[str]] = {}
        self.workers: list[Running] = []
        self._another = another
        self._directory = directory
        self._reader = broker.reader()

    async def prepare(self, tasks: int) -> Stage:
        self.tasks = tasks
        topics = wanted(self.names, tasks, 1024 * 1024)
        await self.broker.create(topics.values())
        places = [
            Partition(name, number)
            for entity in ENTITIES
            for name in (self.names.accepted(entity), self.names.rejected(entity))
            for number in range(tasks)
        ]
        self._reader.assign(dict.fromkeys(places, 0))
        return self

    @property
    def group(self) -> str:
        return f"{self.names.prefix}-{GROUP}"

    async def start(
        self, name: str = "one", *, broker: Broker | None = None, **options: Any
    ) -> Running:
        """Start a worker whose index is in the directory of that name. Grace 0 unless given."""
        running = Running(
            self.names,
            broker or await self._another(),
            self._directory / name,
            self.clock,
            **{"grace": 0, **options},
        )
        self.workers.append(running)
        return running

    async def started(self, name: str = "one", **options: Any) -> Running:
        """Start a worker and wait until it runs all tasks."""
        running = await self.start(name, **options)
        await self.until(lambda: running.runs(range(self.tasks)), f"{name} runs everything")
        return running

    async def idle_member(self) -> Member:
        """One more in the group, who gets its share of the tasks and does nothing."""
        return await (await self._another()).join(self.group, self.names.input("users"))

    # --- records ------------------------------------------------------------------------------

    async def send(self, entity: str, *rows: Row, partition: int | None = None) -> list[str]:
        """Write records to an input; their coordinates."""
        topic = self.names.input(entity)
        places: list[str] = []
        for first in range(0, len(rows), 1_000):
            messages = [
                ProducerRecord(topic, k, v, (), partition) for k, v in rows[first : first + 1_000]
            ]
            written = await self.broker.publish(messages)
            places += [f"{topic}/{number}/{offset}" for number, offset in written]
        for place in places:
            self.outcomes[place] = []
        return places

    async def look(self, timeout: float = 0.1) -> None:
        """Note the outcomes that are there."""
        for _ in range(20):  # a stream that goes on is looked at again
            messages = await self._reader.read(5_000, timeout)
            if not messages:
                return
            for message in messages:
                headers = dict(message.headers)
                codes = headers.get(WARNINGS_HEADER, b"").decode().split(",")
                if ".rejected." in message.topic:
                    verdict = "rejected"
                    found = json.loads(message.value or b"")["violations"]
                    codes = [violation["code"] for violation in found]
                else:
                    verdict = "deleted" if message.value is None else "accepted"
                said = " ".join([verdict, *sorted(filter(None, set(codes)))])
                self.outcomes.setdefault(headers[SOURCE_HEADER].decode(), []).append(said)

    def verdicts(self, places: Iterable[str]) -> Counter[str]:
        """The first outcomes of these records, counted; `none` where there is none yet."""
        return Counter((self.outcomes[place] or ["none"])[0] for place in places)

    async def judged(self, places: Iterable[str] | None = None) -> None:
        """Until these records have an outcome; all, unless some are named."""
        wanted_ = list(self.outcomes if places is None else places)

        async def there() -> bool:
            await self.look()
            return all(self.outcomes[place] for place in wanted_)

        def missing() -> str:
            open_ = [place for place in wanted_ if not self.outcomes[place]]
            return f"outcomes of {len(open_)} of {len(wanted_)} records: {open_[:3]}"

        await self.until_asked(there, missing)

    async def books_balance(self) -> None:
        """Every record has an outcome, exactly one; nothing is parked and no outcome is strange."""
        await self.judged()
        for running in list(self.workers):
            await self.end(running)
        await self.look(0.5)
        odd = {place: said for place, said in self.outcomes.items() if len(said) != 1}
        assert not odd, f"{len(odd)} records without exactly one outcome: {list(odd.items())[:5]}"
        assert await self.parked() == []

    async def parked(self) -> list[bytes]:
        """What the log says is parked."""
        tables = [
            await read_table(self.broker, Partition(self.names.parked, number))
            for number in range(self.tasks)
        ]
        return [key for table in tables for key in table]

    async def rows(self, entity: str) -> Mapping[bytes, Any]:
        """The latest accepted rows."""
        found: dict[bytes, Any] = {}
        for number in range(self.tasks):
            place = Partition(self.names.accepted(entity), number)
            table = await read_table(self.broker, place)
            found |= {key: json.loads(value) for key, value in table.items()}
        return found

    # --- waiting ------------------------------------------------------------------------------

    async def until(self, is_so: Callable[[], bool], what: str) -> None:
        """Until it is so. Fails when that takes too long, or when a worker dies of something."""

        async def ask() -> bool:
            return is_so()

        await self.until_asked(ask, lambda: what)

    async def until_asked(
        self,
        ask: Callable[[], Awaitable[bool]],
        what: Callable[[], str],
        patience: float = PATIENCE,
    ) -> None:
        end = time.monotonic() + patience
        while not await ask():
            for running in self.workers:
                if running.run.done():
                    running.run.result()
            assert time.monotonic() < end, f"never happened: {what()}"
            await asyncio.sleep(0.02)

    async def end(self, running: Running) -> None:
        """Stop a worker in order."""
        self.workers.remove(running)
        await running.end()

    async def close(self) -> None:
        """Stop what still runs, whatever became of it."""
        for running in self.workers:
            running.thaw()
            running.stop.set()
        if self.workers:
            await asyncio.wait([running.run for running in self.workers], timeout=PATIENCE)
        for running in self.workers:
            if running.run.done() and not running.run.cancelled():
                running.run.exception()
        await self._reader.close()


async def two(stage: Stage, **options: Any) -> tuple[Running, Running]:
    """Two workers, each with half of the tasks."""
    one = await stage.started("one", **options)
    other = await stage.start("two", **options)

    def shared() -> bool:
        return all(
            len(w.tasks) == stage.tasks // 2 and w.runs(w.tasks.keys()) for w in (one, other)
        )

    await stage.until(shared, "two workers share the tasks")
    assert set(one.tasks) | set(other.tasks) == set(range(stage.tasks))
    return one, other


def at(n: int, email: str) -> tuple[bytes, bytes]:
    """User n at that address."""
    return user(n, email=email)


async def holders(stage: Stage) -> Counter[str]:
    """How many users' latest rows have each address."""
    return Counter(row["email"] for row in (await stage.rows("users")).values())
