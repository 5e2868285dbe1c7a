"""`buddy rejections replay`: sends rejected records to their inputs again."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any, Final

import click

from worker.cli.console import (
    Context,
    count_of,
    now_ms,
    print_json,
    print_table,
    progress_bar,
    say,
)
from worker.cli.desk_store import store_access
from worker.cli.outcomes import Outcomes
from worker.cli.rejection_lists import chosen, filters
from worker.cli.send import TIMEOUT, WAIT, print_outcomes
from worker.cli.settled_inputs import until_judged
from worker.core.rejection import timestamp
from worker.core.shown import shown
from worker.desk.audit import MOST_REPLAYS
from worker.desk.choosing import read_coordinate
from worker.errors import BuddyError, ReplayTakenOver

if TYPE_CHECKING:
    from rich.progress import Progress

    from worker.desk.replayer import Replayer

_PATIENCE: Final = 90.0
"""Seconds in which records sent before must have their verdicts: longer than any usual grace."""


@click.command("replay")
@click.argument("coordinates", nargs=-1, metavar="[COORDINATE]…")
@filters
@click.option("--dry-run", is_flag=True, help="Send nothing: say how many, and show ten.")
@click.option("--with-orphans", is_flag=True, help="Also the orphans that these have caused.")
@click.option("--force", is_flag=True, help="Also where the key was accepted or deleted since.")
@click.option(
    "--max-replays",
    type=click.IntRange(1, 99_999),
    default=MOST_REPLAYS,
    show_default=True,
    help="Leave out records that were sent again this often.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 1_000_000),
    default=1_000,
    show_default=True,
    help="Records a second.",
)
@click.option("--by", metavar="NAME", help="Who does this, for the audit.  [default: user@host]")
@click.option("--at-once", is_flag=True, help="Wait for no verdicts before the start.")
@WAIT
@TIMEOUT
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def replay_command(
    context: Context,
    /,
    coordinates: tuple[str, ...],
    dry_run: bool,
    with_orphans: bool,
    force: bool,
    max_replays: int,
    rate: int,
    by: str | None,
    at_once: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Send rejected records to their inputs again, each rejection once.

    Choose them by options, or by the COORDINATEs of records or rejections. The same command again
    sends nothing twice, also if it was killed: the audit in the topic `replays` says what was sent.
    With --wait, the exit code is 1 if any record is rejected again.
    """
    if not coordinates and all(value is None for value in options.values()):
        raise click.UsageError(
            "say what to send again: coordinates, or options such as --code or --since 30d"
        )
    if coordinates and (with_orphans or any(value is not None for value in options.values())):
        raise click.UsageError("coordinates go alone, without options that choose")
    from worker.desk.replay import REFUSED, ReplayRun
    from worker.desk.replayer import Replayer, ReplayPlan

    now = now_ms()
    this_run = ReplayRun(
        replay=str(uuid.uuid4()),
        at=timestamp(now),
        by=shown(by or _who(), 64),
        partitions=0,
        most=max_replays,
        forced=force,
    )
    plan = ReplayPlan(
        chosen(options, now),
        tuple(read_coordinate(context.names, coordinate) for coordinate in coordinates),
        rate,
        dry=dry_run,
        with_orphans=with_orphans,
    )
    patience = timeout if wait and not dry_run else None
    run = Replayer(store_access(context), this_run, plan)
    with progress_bar(quiet=as_json) as bar:
        outcomes = asyncio.run(_run(context, run, bar, at_once=at_once, patience=patience))
    if as_json:
        print_json(_report(run, outcomes))
    else:
        _print(run, outcomes)
    refused = run.pages.skipped[REFUSED] or (outcomes is not None and outcomes.rejected)
    return 1 if refused else 0


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


async def _run(
    context: Context,
    replayer: Replayer,
    bar: Progress,
    *,
    at_once: bool,
    patience: float | None,
) -> Outcomes | None:
    """Send everything; wait for the outcomes if there is patience, seconds for the next verdict.

    Raises NoAnswer, StateError, MissingTopic, BrokerUnavailable, DamagedLog.
    """
    dry = replayer.plan.dry
    async with context.broker(read_only=dry) as broker:
        await replayer.prepare(broker)
        if not dry and not at_once:
            await until_judged(broker, context.settings, replayer.this_run.partitions, _PATIENCE)
        outcomes = Outcomes(broker, context.names)
        if patience is not None:
            await outcomes.open()
        sending = bar.add_task("sending again", total=None)
        try:
            await replayer.send(
                broker, outcomes.add_sent, lambda looked_at: bar.advance(sending, looked_at)
            )
        except ReplayTakenOver:
            raise
        except BuddyError as error:
            if replayer.sent and not dry:
                count = count_of(replayer.sent, "record")
                said = f"{error}; {count} sent again before that: the same command sends the rest"
                error.args = (said,)
            raise
        if patience is None:
            return None
        judging = bar.add_task("judged", total=replayer.sent)
        await outcomes.wait(patience, lambda done: bar.update(judging, completed=done))
        await outcomes.close()
        return outcomes


def _report(run: Replayer, outcomes: Outcomes | None) -> dict[str, Any]:
    report = run.report()
    if outcomes is not None:
        report |= {"accepted": outcomes.accepted, "rejected": outcomes.rejected}
    return report


def _print(run: Replayer, outcomes: Outcomes | None) -> None:
    if run.plan.dry and run.examples:
        rows = [
            (one.audit.entity, one.audit.rejection, one.audit.origin, one.audit.replays)
            for one in run.examples
        ]
        columns = ("entity", "rejection", "first sent as", "times sent again")
        print_table("The first of these", columns, rows)
    count = count_of(run.sent, "record")
    say(f"{count} would be sent again." if run.plan.dry else f"{count} sent again.")
    for reason, number in sorted((+run.pages.skipped).items()):
        say(f"{count_of(number, 'rejection')} not: {reason}.")
    if run.pages.orphans and not run.plan.with_orphans:
        orphans = count_of(run.pages.orphans, "open orphan")
        say(f"They have caused {orphans}: --with-orphans sends these again, too.")
    if outcomes is not None:
        print_outcomes(outcomes)
