"""`buddy send` and `buddy delete`: records onto the inputs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
from rich.progress import Progress

from schemas import ENTITIES
from worker.brokers.contract import Broker, Outgoing
from worker.cli.console import Context, print_json, print_table, progress_bar
from worker.core.keys import read_key
from worker.core.sending import KeyReader
from worker.engine.outcomes import Outcomes
from worker.errors import MessageRefused, UsageError
from worker.files import FileRecord, Source, expand, read_ndjson

_BATCH = 2_000
ENTITY = click.option(
    "--entity", type=click.Choice(list(ENTITIES)), help="What the records are, where no name tells."
)


@click.command("send")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@ENTITY
@click.option("--wait", is_flag=True, help="Wait until every record is judged, and count.")
@click.option(
    "--timeout", default=120.0, show_default=True, help="Give up after so many seconds of nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.pass_obj
def send_command(
    context: Context,
    paths: tuple[str, ...],
    entity: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Send records: NDJSON files, a directory of them, an export of any format, or - for stdin.

    With --wait the exit code is 1 if any record was rejected.
    """
    with progress_bar(quiet=as_json) as bar:
        outcomes = asyncio.run(_send(context, _records(paths, entity), bar, wait, timeout))
    sent = sum(outcomes.sent.values())
    result = {"sent": sent}
    if wait:
        result |= {"accepted": outcomes.accepted, "rejected": outcomes.rejected}
    if as_json:
        codes = {f"{e}.{code}": n for (e, code), n in sorted(outcomes.codes.items())}
        print_json(result | ({"violations": codes} if wait else {}))
    elif wait:
        _print_outcomes(outcomes)
    else:
        click.echo(f"{sent} records sent.")
    return 1 if wait and outcomes.rejected else 0


def _print_outcomes(outcomes: Outcomes) -> None:
    if outcomes.codes:
        rows = [(e, code, n) for (e, code), n in sorted(outcomes.codes.items())]
        print_table("What was found", ("entity", "code", "records"), rows)
    click.echo(f"{outcomes.accepted} accepted, {outcomes.rejected} rejected.")


def sources_of(paths: tuple[str, ...], entity: str | None) -> list[Source] | None:
    """The files that the paths mean, None for standard input ("-"). Raises UsageError."""
    if "-" not in paths:
        return expand([Path(path) for path in paths], entity)
    if len(paths) > 1:
        raise UsageError("'-' (standard input) goes alone")
    if entity is None:
        raise UsageError("standard input needs --entity")
    return None


def _records(paths: tuple[str, ...], entity: str | None) -> Iterator[FileRecord]:
    sources = sources_of(paths, entity)
    if sources is None:
        yield from read_ndjson(sys.stdin.buffer, str(entity), "-")
    for source in sources or ():
        yield from source.read()


async def _send(
    context: Context, records: Iterator[FileRecord], bar: Progress, wait: bool, timeout: float
) -> Outcomes:
    names = context.names
    keys = {name: KeyReader(e) for name, e in ENTITIES.items()}
    sending = bar.add_task("sending", total=None)
    async with context.broker() as broker:
        outcomes = Outcomes(broker, names)
        if wait:
            await outcomes.open()
        while batch := await asyncio.to_thread(list, islice(records, _BATCH)):
            messages = [
                Outgoing(names.inputs(r.entity), keys[r.entity].read(r.value), r.value)
                for r in batch
            ]
            try:
                places = await broker.publish(messages)
            except MessageRefused as error:
                raise _refused(error, batch, outcomes.sent.total()) from None
            outcomes.note(messages, places)
            bar.advance(sending, len(batch))
        bar.update(sending, total=sum(outcomes.sent.values()))
        if wait:
            judging = bar.add_task("judged", total=sum(outcomes.sent.values()))
            await outcomes.wait(timeout, lambda done: bar.update(judging, completed=done))
        await outcomes.close()
    return outcomes


def _refused(error: MessageRefused, batch: list[FileRecord], sent: int) -> UsageError:
    """Which record it was, and where to go on: nothing of its batch has been sent."""
    first = batch[0]
    wrong = batch[error.index] if error.index is not None else first
    return UsageError(
        f"{wrong.path}, line {wrong.line}: the broker refuses this record ({error}); "
        f"the {sent} records before {first.path}, line {first.line} have been sent"
    )


@click.command("delete")
@click.argument("entity", type=click.Choice(list(ENTITIES)))
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@click.pass_obj
def delete_command(context: Context, entity: str, keys: tuple[str, ...]) -> int:
    """Delete rows of ENTITY by their keys (a composite key is written a:b)."""
    canonical = []
    for key in keys:
        found = read_key(ENTITIES[entity], key.encode())
        if found is None:
            form = ":".join(ENTITIES[entity].key)
            raise UsageError(f"{key[:80]!r} is no key of {entity}: expected {form}")
        canonical.append(found)

    async def run(broker_context: Context) -> None:
        async with broker_context.broker() as broker:
            await _delete(broker, broker_context.names.inputs(entity), canonical)

    asyncio.run(run(context))
    click.echo(f"{len(canonical)} deletions sent.")
    return 0


async def _delete(broker: Broker, topic: str, keys: list[bytes]) -> None:
    await broker.publish([Outgoing(topic, key, None) for key in keys])
