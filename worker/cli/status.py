"""`buddy status`: shows workers, sinks, positions, counts and schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import click
import msgspec

from worker.cli.console import Context, now_ms, print_json, print_table, say, short_time
from worker.cli.desk_store import desk_directory
from worker.cli.incidents import glance, say_glance
from worker.cli.settings import Settings
from worker.cli.whole_status import whole_status
from worker.desk.answers import incident_answer
from worker.errors import NobodyWorks, StateError
from worker.status.report import Report
from worker.status.whole import ScheduleRun, WholeStatus


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", is_flag=True, help="Print only problems.")
@click.option(
    "--service",
    "services",
    multiple=True,
    type=click.Choice(["worker", "sink"]),
    default=["worker"],
    help="Service that must be running (default: worker). Repeatable.",
)
@click.pass_obj
def status_command(context: Context, as_json: bool, quiet: bool, services: tuple[str, ...]) -> int:
    """Show workers, sinks, positions, counts, and the last and next run of each schedule.

    The exit code is 0 if the services of --service work. It is 8 if one is not running, or if
    records have waited for 30 s in an input whose position does not move. It is 3 if a topic
    is missing, or if one of these holds and a topic has wrong settings. The command creates no
    topics and no files.
    """
    status = asyncio.run(_collect(context, services))
    found, runs, wrong, damage = status.report, status.runs, status.trouble, status.damage
    seen, unseen = None, None
    try:
        seen = glance(desk_directory(context), context.names, now_ms())
    except StateError as error:
        unseen = str(error)
    if as_json:
        settings = context.settings
        head = {
            "broker": settings.broker,
            "prefix": settings.prefix,
            "trouble": wrong,
            "damage": damage,
            "topics": status.topics,
        }
        rejected = None if seen is None or seen.is_late else [*map(incident_answer, seen.open)]
        tail = {"schedules": runs, "rejection_incidents": rejected}
        print_json({**head, **msgspec.structs.asdict(found), **tail})
    elif not quiet:
        _print(context.settings, found, runs)
        if unseen is None:
            say_glance(seen)
        else:
            say(f"Rejections: {unseen}")
        for line in damage:
            say(f"Damage: {line}")
        if status.topics is not None:
            say(f"Topics: {status.topics}")
    if wrong is not None:
        raise NobodyWorks(wrong)
    return 0


async def _collect(context: Context, services: Collection[str]) -> WholeStatus:
    async with context.broker(read_only=True) as broker:
        return await whole_status(broker, context.settings, services)


def _print(settings: Settings, found: Report, runs: Mapping[str, ScheduleRun]) -> None:
    entities = {name: msgspec.structs.asdict(figures) for name, figures in found.entities.items()}
    held_up = any(figures["blocked"] for figures in entities.values())
    counted = ("read", "accepted", "deleted", "rejected", "parked", "lag")
    shown = (*counted, "blocked") if held_up else counted
    titles = {"lag": "to be read", "blocked": "in open transactions"}
    print_table(
        f"{settings.broker}, prefix {settings.prefix}",
        ("entity", *(titles.get(column, column) for column in shown)),
        [
            (name, *("unknown" if figures[c] is None else figures[c] for c in shown))
            for name, figures in entities.items()
        ],
        "" if found.lag_is_exact else "to be read: at most so many, transaction markers count, too",
        whole=("entity",),
    )
    print_table(
        "Tasks",
        ("task", "owner", "last worker", "since", "last commit", "parked", "to be read"),
        [
            (
                str(task.task),
                task.owner or "nobody",
                task.worker or "unknown",
                _short(task.since, "unknown"),
                _short(task.committed, "never"),
                "unknown" if task.parked is None else task.parked,
                task.lag,
            )
            for task in found.tasks
        ],
        "times in UTC",
        whole=("since", "last commit"),
    )
    for line in _lines(found):
        say(line)
    if runs:
        print_table(
            "Schedules, by the settings of this command",
            ("schedule", "cron", "last run", "next run"),
            [
                (name, run.cron, _short(run.last, "never"), _short(run.next, ""))
                for name, run in runs.items()
            ],
            "times in UTC; a next run in the past is overdue",
        )


def _short(moment: str | None, absent: str) -> str:
    """A moment of a report, for people."""
    if moment is None:
        return absent
    return short_time(datetime.fromisoformat(moment), datetime.now(UTC))


def _lines(found: Report) -> list[str]:
    if found.sinks is None:
        sinks = "unknown: this user may not describe their group"
    else:
        named = [f"{sink.name}{' (active)' if sink.active else ''}" for sink in found.sinks]
        sinks = ", ".join(named) or "none"
    incidents = ", ".join(f"{kind} {count}" for kind, count in found.incidents.items())
    skipped = ", ".join(f"{topic} {count}" for topic, count in found.skipped.items())
    lines = [
        f"Workers: {', '.join(worker.name for worker in found.workers) or 'none'}",
        f"Sinks: {sinks}",
        f"Oldest parked record: {found.oldest_parked or 'none'}",
        f"Incidents: {incidents or 'none'}",
    ]
    if skipped:
        lines.append(f"Damaged offsets that were skipped, and are lost: {skipped}")
    lines += [
        f"Task {task.task}: internal.progress cannot be read to its end"
        for task in found.tasks
        if not task.complete
    ]
    lines += [
        f"Task {task.task}: has worked, and its checkpoint in internal.progress is lost. Unless a"
        " running worker remembers it, all that is in the inputs is judged again (progress_lost)"
        for task in found.tasks
        if task.begins_again
    ]
    if any(task.parked is None and not task.begins_again for task in found.tasks):
        lines.append(
            "Figures are unknown: an earlier release, which kept no books, saved a task's progress."
            " Start a worker"
        )
    if found.unreadable_progress:
        lines.append(f"Unreadable messages in internal.progress: {found.unreadable_progress}")
    return lines
