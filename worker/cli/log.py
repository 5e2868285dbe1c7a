"""`buddy log verify`, `skip` and `accept-clock`: faults of the embedded broker's log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.damage import Damage, Looked
from worker.brokers.embedded.explanations import explain_os_error
from worker.brokers.embedded.store import FILE_NAME
from worker.cli.console import Context, confirm, count_of, print_json, progress_bar, say
from worker.errors import DamagedLog, StateError, UsageError
from worker.stream import Partition


@click.group("log")
def log_command() -> None:
    """Look after the log of the embedded broker. Other processes may keep using it."""


@log_command.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def verify(context: Context, as_json: bool) -> int:
    """Search the whole log for damage.

    The exit code is 0 if the log is intact or all damage was skipped, else 6.
    """
    size = _file(context).stat().st_size

    async def run() -> Looked:
        with progress_bar() as bar:
            task = bar.add_task("bytes", total=size)
            async with _log(context) as broker:
                found = await broker.inspection.verify(lambda done: bar.advance(task, done))
            bar.update(task, completed=size)
        return found

    found = asyncio.run(run())
    lines = [damage.line() for damage in found.damaged] + [f"file: {line}" for line in found.file]
    if as_json:
        print_json(
            {
                "batches": found.batches,
                "bytes": found.size,
                "damaged": [
                    {
                        "topic": damage.partition.topic,
                        "partition": damage.partition.number,
                        "from": damage.base,
                        "to": damage.next,
                        "reason": damage.reason,
                        "skipped": damage.skipped,
                    }
                    for damage in found.damaged
                ],
                "file": found.file,
            }
        )
    else:
        for line in lines:
            say(line)
        batches = count_of(found.batches, "batch is", "batches are")
        say(f"{batches} as written, {count_of(found.size, 'byte')}.")
    left = [damage for damage in found.damaged if not damage.skipped]
    if left or found.file:
        raise DamagedLog(f"The log is damaged in {count_of(len(left) + len(found.file), 'place')}.")
    return 0


@log_command.command("skip")
@click.argument("where", metavar="TOPIC/PARTITION[@OFFSET]")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def skip(context: Context, where: str, yes: bool) -> int:
    """Skip a damaged batch. Its messages are lost, and are counted as lost.

    If only an index is damaged, it is rebuilt instead and nothing is lost. Without OFFSET, the
    command skips the first known damage of the partition.
    """
    partition, offset = _partition_and_offset(where)

    async def find() -> Damage:
        async with _log(context) as broker:
            return await broker.inspection.find(partition, offset)

    async def carry_out(damage: Damage) -> bool:
        async with _log(context) as broker:
            return await broker.inspection.skip(damage)

    damage = asyncio.run(find())
    lost = damage.next - damage.base
    if not yes:
        confirm(f"{damage.line()}. Lose up to {count_of(lost, 'message')} and go on?")
    if asyncio.run(carry_out(damage)):
        say(f"Skipped {count_of(lost, 'offset')} of {partition.topic}/{partition.number}.")
    else:
        say("Only the index was damaged. It was made again, and nothing is lost.")
    return 0


@log_command.command("accept-clock")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def accept_clock(context: Context, yes: bool) -> int:
    """Accept this machine's clock as right, although it contradicts the log's own time."""
    _file(context)  # before anybody is asked
    now = datetime.now(UTC)
    if not yes:
        confirm(f"Is it {now:%Y-%m-%dT%H:%M:%SZ}? What is kept for a time may go")

    async def run() -> int:
        async with _log(context) as broker:
            return (await broker.accept_clock()).ahead

    ahead = asyncio.run(run())
    say(f"The log's time was set by {ahead / 1000:+.0f} s.")
    return 0


def _file(context: Context) -> Path:
    """The log's file. Raises StateError if it is missing, since no command here creates a log."""
    scheme, _, rest = context.settings.broker.partition(":")
    if scheme != "embedded":
        raise UsageError(
            f"'buddy log' is for the log of an embedded broker; {scheme} looks after its own."
        )
    path = Path(rest) / FILE_NAME
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise StateError(f"There is no log in {rest}: name another one with --broker.") from None
    except OSError as error:
        raise explain_os_error(error, path.parent) from error
    return path


@asynccontextmanager
async def _log(context: Context) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(_file(context).parent)
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


def _partition_and_offset(where: str) -> tuple[Partition, int | None]:
    name, at, offset = where.partition("@")
    topic, slash, number = name.rpartition("/")
    if not (slash and topic and number.isdecimal() and (not at or offset.isdecimal())):
        raise click.UsageError(
            f"{where!r} is not TOPIC/PARTITION@OFFSET, such as buddy.in.users/0@7."
        )
    return Partition(topic, int(number)), int(offset) if at else None
