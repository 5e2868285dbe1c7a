"""Collects what `buddy status` and the console show of workers, sinks, positions and schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime

from worker.brokers.contract import Broker
from worker.brokers.tables import read_checked
from worker.cli.ask_broker import broker_answers, first_unread, with_earlier_checkpoints
from worker.cli.settings import Settings
from worker.core.topics import Names
from worker.engine.startup import check_topics
from worker.errors import ConfigurationError, DamagedLog
from worker.sink.agenda import Standing, read_standing, upcoming
from worker.status.broker_answers import unread
from worker.status.report import report
from worker.status.trouble import may_be_still, stalled, trouble
from worker.status.whole import ScheduleRun, WholeStatus
from worker.stream import Partition


async def whole_status(
    broker: Broker, settings: Settings, services: Collection[str]
) -> WholeStatus:
    """The status now; `services` must work, else `trouble` says why one does not.

    Raises MissingTopic and BrokerUnavailable. Raises ConfigurationError if topics are not as they
    must be, unless the services work all the same: a setting may change under them.
    """
    names = Names(settings.prefix)
    unfit: ConfigurationError | None = None
    try:
        tasks = await check_topics(broker, names, settings.max_record_bytes)
    except ConfigurationError as error:
        unfit, tasks = error, await _tasks(broker, names)
        if not tasks:
            raise
    answers, runs = await asyncio.gather(
        broker_answers(broker, settings, tasks),
        _runs(broker, names, settings),
    )
    positions = unread(answers)
    doubtful = any(may_be_still(answers, partition) for partition in positions)
    waiting = await first_unread(broker, positions, answers.spans) if doubtful else {}
    answers = await with_earlier_checkpoints(broker, answers, waiting)
    damage = await broker.damage()
    lags = {
        partition: answers.spans[partition].end - at
        for partition, at in positions.items()
        if partition in waiting or not doubtful
    }
    late = stalled(answers, waiting)
    wrong = trouble(answers, sum(lags.values()), late, services) or broker.hindrance()
    if unfit is not None and wrong is not None:  # it may be the cause
        raise unfit
    topics = None if unfit is None else str(unfit)
    return WholeStatus(report(answers, lags), runs, wrong, damage, topics)


async def _tasks(broker: Broker, names: Names) -> int:
    """The number of tasks; 0 if topics are missing, or have other numbers of partitions."""
    every = set(names.every())
    there = await broker.topics(every)
    counts = {there[name].partitions for name in there.keys() - names.of_one_partition()}
    return counts.pop() if there.keys() == every and len(counts) == 1 else 0


async def _runs(broker: Broker, names: Names, settings: Settings) -> dict[str, ScheduleRun]:
    if not settings.schedules:
        return {}
    try:
        table = await read_checked(broker, Partition(names.schedules, 0), read_standing)
    except DamagedLog:  # reported with the other damage
        return {}
    now = datetime.now(UTC)
    runs = {}
    for schedule in settings.schedules:
        standing = table.rows.get(schedule.name.encode(), Standing(now))
        runs[schedule.name] = ScheduleRun(
            schedule.cron,
            None if standing.made is None else _time(standing.made),
            standing.export,
            _time(upcoming(schedule, standing)),
        )
    return runs


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
