"""Reports of a worker: log lines, metrics, health. The worker never depends on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.brokers.sound import sound_spans
from worker.brokers.transactions import Blocked, OpenTransactions
from worker.clock import Clock, StepWatch
from worker.core.incidents import CLOCK_STEPPED, FOREIGN_ROW
from worker.core.outbox import Tally
from worker.core.task_settings import TaskSettings
from worker.core.topics import are_missing
from worker.engine.frontiers import Frontiers
from worker.engine.index_updater import IndexUpdater
from worker.engine.losses import Losses
from worker.engine.task_handle import inputs
from worker.engine.tasks import TaskManager
from worker.errors import BuddyError, DamagedLog, Fenced
from worker.ops.health import Health, ServiceHealth
from worker.ops.metrics import Metrics
from worker.ops.skips import Skips
from worker.ops.steady_health import STEADY_MS, SteadyHealth
from worker.stream import Partition

_MEASURE_EVERY_MS: Final = 1_000
_FAILING_MS: Final = 30_000
"""For this long after a failed commit, only a successful commit counts as progress.

The worker first reads the failed round again. If that commit took effect after all, no commit may
follow, so this is shorter than the limit of `/live`."""
_LAG_EVERY_MS: Final = 5_000
"""Measuring the lag costs broker requests."""

_log = structlog.get_logger(__name__)


class WorkerReports(Losses):
    """Reports events when they happen, and measures state once a second. Times are steady."""

    def __init__(self, metrics: Metrics, health: ServiceHealth, clock: Clock) -> None:
        super().__init__(metrics, health, clock)
        self._failed_at = clock.steady() - _FAILING_MS
        self._foreign = self._rebuilt = 0
        self._last_measured = -_MEASURE_EVERY_MS
        self._lag_measured = self._damage_looked_for = -_LAG_EVERY_MS
        self._damaged: dict[Partition, str] = {}
        self._skips = Skips(metrics, health, ".rejected.")
        self._missing: Sequence[str] = ()
        self._hindrances = SteadyHealth(health, clock.steady)
        self._failing: set[int] = set()
        """Tasks of rounds whose commit failed; cleared by the next successful commit."""
        self._not_started: dict[int, BuddyError] = {}
        """Assigned tasks whose last take-over failed and that do not run yet."""
        self._refused: dict[int, str] = {}
        """Assigned tasks that cannot continue, since the broker refuses an outcome, and why."""
        self._steps = StepWatch(clock)
        self._inputs = OpenTransactions(clock.steady)
        self._followed = OpenTransactions(clock.steady)

    def alive(self) -> None:
        """Report a finished step of restoring, or an outage that will be retried."""
        self.health.alive(self._clock.steady())

    def outage(self, what: str, error: BuddyError, wait: float) -> None:
        """Report that the broker is unavailable or refuses; the retry is after `wait` seconds."""
        _log.warning("broker_unavailable", error=str(error), retry_in=round(wait, 1))
        self.hindered(what, error)
        self.alive()  # a restart would not end the outage

    def followed(self, error: BuddyError | None) -> None:
        """Report whether the index can follow the accepted topics (None) or why not."""
        if error is None:
            self.free("index")
        else:
            self.hindered("index", error)

    def hindered(self, what: str, error: BuddyError) -> None:
        """Report that a part of the work is blocked: not ready until `free`."""
        self._hindrances.hindered(what, str(error))

    def free(self, what: str, after: int = STEADY_MS) -> None:
        """Report success of a part of the work; effective once it has gone well for `after` ms."""
        self._hindrances.free(what, after)

    def committed(self, tallies: Mapping[int, Tally], began: int) -> None:
        """Report a committed round: its tallies by task, and when it began."""
        now = self._clock.steady()
        self.health.alive(now)
        self._failing.clear()
        self.metrics.transaction("committed")
        read = sum(tally.read.total() for tally in tallies.values())
        self.metrics.batch(max(0, now - began) / 1000, read)
        for number, tally in tallies.items():
            self._done(number, tally)
        self._keep_refused(self._refused.keys() - tallies.keys())

    def _done(self, number: int, tally: Tally) -> None:
        self.metrics.tally(tally, self._clock.wall())
        if tally.violations:
            found = {".".join(filter(None, what)): n for what, n in tally.violations.items()}
            _log.info("violations", task=number, count=sum(found.values()), found=found)
        for entity, names in tally.unknown_names.names().items():
            count = tally.unknown_fields[entity]
            _log.info("unknown_fields", task=number, entity=entity, count=count, names=names)
        for source, error in tally.failures:
            _log.error("internal_error", source=source, error=error)
        for partition, offsets in tally.unreadable.items():
            self.unreadable(partition, offsets)
        if tally.asked_again:
            self.metrics.anomalies.asked_again(tally.asked_again)
            _log.warning("requests_repeated", task=number, count=tally.asked_again)
        for source in tally.records_omitted:
            _log.error("record_omitted", source=source)

    def unreadable(self, partition: Partition, offsets: Sequence[int]) -> None:
        """Report skipped messages of an internal topic that no worker can have written."""
        self.metrics.anomalies.unreadable_internal(len(offsets))
        _log.error(
            "unreadable_internal",
            topic=partition.topic,
            partition=partition.number,
            offset=offsets[0],
            count=len(offsets),
        )

    def not_committed(self, numbers: Iterable[int], error: BuddyError) -> None:
        """Report that the commit of a round of these tasks failed."""
        self._failed_at = self._clock.steady()
        self.metrics.transaction("fenced" if isinstance(error, Fenced) else "failed")
        tasks = sorted(numbers)
        _log.warning("commit_failed", tasks=tasks, error=str(error))
        if not isinstance(error, Fenced):  # when fenced, another worker does some work
            self._failing.update(tasks)
            self.hindered("tasks", error)

    def not_started(self, number: int, error: BuddyError) -> None:
        """Report that a take-over failed."""
        _log.warning("task_not_started", task=number, error=str(error))
        self._not_started[number] = error
        self.hindered("tasks", error)

    def refused(self, number: int | None, why: str | None) -> None:
        """Report a refused commit; `why` is set if the task cannot continue."""
        if why is not None:
            _log.error("commit_refused", task=number, error=why)
            if number is not None:
                self._refused[number] = why
                self._keep_refused(self._refused.keys())

    def _keep_refused(self, numbers: Collection[int]) -> None:
        """Not ready while the broker refuses an outcome of these tasks, whatever others commit."""
        self._refused = {n: why for n, why in self._refused.items() if n in numbers}
        if self._refused:
            why = next(iter(self._refused.values()))
            self.health.hindered("refused outcomes", why, self._clock.steady())
        else:
            self.health.free("refused outcomes")

    def watch_clock(self, tasks: TaskManager) -> None:
        """Report if the wall clock was set."""
        step = self._steps.step()
        if not step:
            return
        self.metrics.anomalies.clock_stepped()
        for handle in list(tasks.running.values())[:1]:  # one step counts once
            handle.task.books.incident(CLOCK_STEPPED)
        _log.warning("clock_stepped", by_ms=step)

    def damaged(self, damage: Mapping[Partition, str], tasks: TaskManager) -> None:
        """Report the damage that blocks inputs, one line each: each place is an incident.

        The broker has logged the coordinates.
        """
        for partition, line in damage.items():
            handle = tasks.running.get(partition.number)
            if handle is not None and self._damaged.get(partition) != line:
                handle.task.books.incident("log_damaged")
        self._damaged = dict(damage)

    async def look_for_damage(self, broker: Broker) -> None:
        """Report every 5 s: known damage, skipped offsets of rejected topics, blocked upkeep.

        Raises BrokerUnavailable.
        """
        now = self._clock.steady()
        if now - self._damage_looked_for < _LAG_EVERY_MS:
            return
        self._damage_looked_for = now
        self._skips.update(await broker.skipped(), now)
        damage = await broker.damage()
        state = {str(e) for e in self._not_started.values() if isinstance(e, DamagedLog)}
        self.metrics.anomalies.log_damaged(len({*damage, *state}))
        if damage:
            self.health.hindered("log", damage[0], now)
        else:
            self.health.free("log")
        if (hindrance := broker.hindrance()) is not None:
            self.health.hindered("log upkeep", hindrance, now)
        else:
            self.health.free("log upkeep")

    def round(self, tasks: TaskManager, *, in_flight: bool) -> None:
        """Report a finished round, which counts as progress if no commit is in flight."""
        self.metrics.round()
        self.tasks(tasks)
        now = self._clock.steady()
        if not in_flight and now - self._failed_at >= _FAILING_MS:
            self.health.alive(now)

    def tasks(self, tasks: TaskManager) -> None:
        """Report which tasks are assigned and which run."""
        self.metrics.tasks(len(tasks.assigned), len(tasks.running))
        self.health.tasks(len(tasks.assigned), len(tasks.running))
        self._failing &= tasks.assigned
        waiting = tasks.assigned - tasks.running.keys()
        self._not_started = {n: error for n, error in self._not_started.items() if n in waiting}
        self._keep_refused(tasks.assigned)
        if not self._failing and not self._not_started:
            self.free("tasks")

    async def measure(
        self, tasks: TaskManager, frontiers: Frontiers, updater: IndexUpdater
    ) -> None:
        """Measure parked records, frontiers and the index, once a second."""
        now = self._clock.steady()
        if now - self._last_measured < _MEASURE_EVERY_MS:
            return
        self._last_measured = now
        self._look_for_topics(tasks.missing_topics)
        parked: Counter[str] = Counter()
        firsts = []
        waiting = memory = 0
        for handle in tasks.running.values():
            parking = handle.task.parking
            parked.update({entity: parking.count(entity) for entity in ENTITIES})
            memory += sum(map(parking.weight, ENTITIES))
            if (first := parking.oldest()) is not None:
                firsts.append(first.steady)
            waiting += handle.task.parking.past_grace
        since = frontiers.waiting_since()
        oldest = min(firsts, default=now)
        self.metrics.parked(parked, memory, max(0, now - oldest) / 1000)
        self.metrics.frontier(
            waiting, 0.0 if since is None else max(0, now - since) / 1000, frontiers.blocked_by()
        )
        async with updater.lock:
            self.metrics.index(**updater.index.counts())
            foreign = updater.index.foreign - self._foreign
            self._foreign += foreign
            rebuilt = updater.index.rebuilt - self._rebuilt
            self._rebuilt += rebuilt
        self.metrics.anomalies.foreign_rows("index", foreign)
        self.metrics.anomalies.state_rebuilt("index", rebuilt)
        self.enter_in_books(tasks)
        # Every worker sees every foreign row, so only the books of task 0 count them.
        if foreign and (first_task := tasks.running.get(0)) is not None:
            first_task.task.books.incident(FOREIGN_ROW, foreign)

    def _look_for_topics(self, missing: Sequence[str]) -> None:
        """Report missing topics of tasks' state: once in the log, and as not ready until back."""
        for topic in missing:
            if topic not in self._missing:
                _log.error("internal_missing", topic=topic)
        self._missing = missing
        if missing:
            reason = are_missing(missing)
            self.health.hindered("state of tasks", reason, self._clock.steady())
        else:
            self.health.free("state of tasks")

    async def measure_lag(
        self,
        tasks: TaskManager,
        updater: IndexUpdater,
        broker: Broker,
        reader: Reader,
        settings: TaskSettings,
    ) -> None:
        """Measure the lag of the inputs, in records, every 5 s; detect open transactions.

        Records of open transactions count: nothing else reports them. Raises BrokerUnavailable.
        """
        now = self._clock.steady()
        partitions = [
            p for o in tasks.running.values() if o.assigned for p in inputs(o.task, settings)
        ]
        if partitions and now - self._lag_measured < _LAG_EVERY_MS:
            return
        # Measure the first task at once.
        self._lag_measured = now if partitions else now - _LAG_EVERY_MS
        # Workers do not read rejections, but an open transaction hides them from other readers.
        rejected = [
            Partition(settings.names.rejected(entity), handle.task.number)
            for handle in tasks.running.values()
            for entity in ENTITIES
        ]
        followed = [*updater.accepted, *updater.progress, *rejected] if partitions else []
        asked = [*partitions, *followed]
        stable = await sound_spans(broker, asked) if asked else {}
        spans = await sound_spans(broker, asked, uncommitted=True) if asked else {}
        lag = {p: max(0, spans[p].end - reader.position(p)) for p in partitions if p in spans}
        ends = {p: (stable[p].end, span.end) for p, span in spans.items() if p in stable}
        if blocked := self._blocked(
            "inputs", self._inputs, {p: ends[p] for p in partitions if p in ends}
        ):
            _log.warning("input_blocked", **blocked.log_fields())
        if blocked := self._blocked(
            "followed topics", self._followed, {p: ends[p] for p in followed if p in ends}
        ):
            _log.warning("accepted_blocked", **blocked.log_fields())
        self.metrics.lag(lag)
        self.health.lag(sum(lag.values()))

    def _blocked(
        self, what: str, open_: OpenTransactions, ends: Mapping[Partition, tuple[int, int]]
    ) -> Blocked | None:
        """The transaction open longest; the worker is not ready until it ends."""
        blocked = open_.update(ends)
        if blocked is None:
            self.health.free(what)
        else:
            self.health.hindered(what, str(blocked), self._clock.steady())
        return blocked


def unheard(clock: Clock) -> WorkerReports:
    """Reports that reach only the log; their metrics are not served."""
    metrics = Metrics()
    return WorkerReports(metrics, Health(metrics, clock.steady).part("worker"), clock)
