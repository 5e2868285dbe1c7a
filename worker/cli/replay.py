"""`buddy rejections replay`: sends rejected records to their inputs again."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
from worker.cli.outcomes import Outcomes
from worker.cli.pages import Pages, read_coordinate
from worker.cli.rejection_lists import chosen, filters
from worker.cli.send import TIMEOUT, WAIT, print_outcomes
from worker.cli.settled_inputs import until_judged
from worker.core.rejection import timestamp
from worker.core.shown import shown
from worker.desk.audit import MOST_REPLAYS
from worker.errors import BuddyError, Fenced, MissingTopic, StateError

if TYPE_CHECKING:
    from rich.progress import Progress

    from worker.brokers.contract import Broker, Committer
    from worker.desk.queries import Filter
    from worker.desk.replay import ReplayRun, Resent

_AT_ONCE: Final = 1_000
"""Most records in one transaction. The store is brought up to date before each."""
_EXAMPLES: Final = 10
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

    now = now_ms()
    this_run = ReplayRun(
        replay=str(uuid.uuid4()),
        at=timestamp(now),
        by=shown(by or _who(), 64),
        partitions=0,
        most=max_replays,
        forced=force,
    )
    plan = _Plan(
        chosen(options, now),
        tuple(read_coordinate(context, coordinate) for coordinate in coordinates),
        rate,
        dry=dry_run,
        at_once=at_once,
        with_orphans=with_orphans,
        patience=timeout if wait and not dry_run else None,
    )
    with progress_bar(quiet=as_json) as bar:
        run = _Replay(context, this_run, plan, bar)
        outcomes = asyncio.run(run.run())
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


class _Plan(NamedTuple):
    """What to send again, and how."""

    chosen: Filter
    coordinates: tuple[str, ...]
    """If there are any, these rejections and no others."""
    rate: int
    """Records a second."""
    dry: bool
    at_once: bool
    """Whether not to wait until everything sent before has its verdict."""
    with_orphans: bool
    patience: float | None
    """How many seconds to wait for the next verdict; None if nothing waits for verdicts."""


class _Replay:
    """One run of the command."""

    def __init__(self, context: Context, this_run: ReplayRun, plan: _Plan, bar: Progress) -> None:
        self.this_run = this_run
        self.plan = plan
        self.sent = 0
        """Records sent again, or with `dry` those that would be."""
        self.pages = Pages(
            context,
            plan.chosen,
            plan.coordinates,
            limit=min(plan.rate, _AT_ONCE),
            with_orphans=plan.with_orphans,
        )
        self.examples: list[Resent] = []
        self._context = context
        self._names = context.names
        self._bar = bar

    async def run(self) -> Outcomes | None:
        """Send everything, and wait for the outcomes if that is planned.

        Raises NoAnswer, StateError, MissingTopic, BrokerUnavailable, DamagedLog.
        """
        names, patience = self._names, self.plan.patience
        async with self._context.broker(read_only=self.plan.dry) as broker:
            topics = await broker.topics([names.input("users"), names.replays])
            for name in (names.input("users"), names.replays):
                if name not in topics:
                    raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
            self.this_run = self.this_run._replace(
                partitions=topics[names.input("users")].partitions
            )
            if not self.plan.dry and not self.plan.at_once:
                settings = self._context.settings
                await until_judged(broker, settings, self.this_run.partitions, _PATIENCE)
            outcomes = Outcomes(broker, names)
            if patience is not None:
                await outcomes.open()
            try:
                if self.plan.dry:
                    await self._send(broker, None, outcomes)
                else:
                    await self._send_once(broker, outcomes)
            finally:
                await self.pages.close()
            if patience is None:
                return None
            judging = self._bar.add_task("judged", total=self.sent)
            await outcomes.wait(patience, lambda done: self._bar.update(judging, completed=done))
            await outcomes.close()
            return outcomes

    async def _send_once(self, broker: Broker, outcomes: Outcomes) -> None:
        """Send as the only replay. What others have sent until now is in the audit."""
        writer = f"{self._names.prefix}-replay"
        committer = await broker.committer(writer, writer)
        try:
            await self._send(broker, committer, outcomes)
        except Fenced:
            raise StateError(
                "another 'buddy rejections replay' has begun: this one has stopped; the topic "
                f"{self._names.replays} says what it has sent"
            ) from None
        except BuddyError as error:
            if self.sent:
                count = count_of(self.sent, "record")
                said = f"{error}; {count} sent again before that: the same command sends the rest"
                error.args = (said,)
            raise
        finally:
            await committer.close()

    async def _send(self, broker: Broker, committer: Committer | None, outcomes: Outcomes) -> None:
        from worker.desk import replay

        clock = asyncio.get_running_loop().time
        sending = self._bar.add_task("sending again", total=None)
        due = clock()
        while candidates := await self.pages.next(broker):
            may = replay.sendable(candidates, self.this_run, self.pages.skipped)
            async for resent in replay.batches(
                broker, self._names, may, self.this_run, self.pages.skipped
            ):
                self.examples += resent[: _EXAMPLES - len(self.examples)]
                if committer is None:
                    self.sent += len(resent)
                    continue
                sent = await replay.commit(committer, self._names, resent, self.pages.skipped)
                outcomes.add_sent(*sent)
                self.sent += len(sent[0])
                due = max(due, clock()) + len(sent[0]) / self.plan.rate
                await asyncio.sleep(max(0.0, due - clock()))
            self._bar.advance(sending, len(candidates))


def _report(run: _Replay, outcomes: Outcomes | None) -> dict[str, Any]:
    report: dict[str, Any] = {
        "replay": run.this_run.replay,
        "dry_run": run.plan.dry,
        "sent": 0 if run.plan.dry else run.sent,
        "skipped": dict(sorted((+run.pages.skipped).items())),
        "orphans": run.pages.orphans,
    }
    if run.plan.dry:
        report |= {
            "would_send": run.sent,
            "examples": [one.audit.rejection for one in run.examples],
        }
    if outcomes is not None:
        report |= {"accepted": outcomes.accepted, "rejected": outcomes.rejected}
    return report


def _print(run: _Replay, outcomes: Outcomes | None) -> None:
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
