"""`buddy export`: publishes a request, which the sink carries out."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from rich.progress import Progress

from schemas import ENTITIES
from worker import log
from worker.brokers.contract import Broker
from worker.cli.apart import check_out
from worker.cli.console import (
    Context,
    OneOf,
    Seconds,
    count_of,
    print_json,
    print_table,
    progress_bar,
    say,
)
from worker.cli.export_copy import copy, places_of, room_for
from worker.core.topics import Names
from worker.errors import (
    BuddyError,
    Incomplete,
    MissingTopic,
    NoAnswer,
)
from worker.exports.layout import FORMATS
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    check_request,
    decode_announcement,
    encode_request,
    is_request_id,
)
from worker.stream import Partition, ProducerRecord

_STAGES: Final = {
    "place": "asking the place of exports",
    "judge": "waiting for verdicts",
    "read": "reading accepted rows",
    "collect": "collecting rows",
    "write": "writing files",
}
_BECAUSE: Final = {
    "no_base": "no export of that name was finished before",
    "store_rebuilt": "the sink's store was rebuilt since the last one of that name",
    "other_options": "the last one of that name had other entities or another range",
    "base_damaged": "what was known of the last one of that name is damaged",
    "base_gone": "the last one of that name is not there any more: was an older copy put back?",
    "own_bookmark": "the first since the bookmarks of schedules are their own",
    "other_sink": "another sink, or this one with another store, made the last one of that name",
}


class ExportFailedError(BuddyError):
    """The sink answered that it could not make the export."""


@click.command("export")
@click.option(
    "--format", "formats", type=OneOf("a format", FORMATS), multiple=True, help="Repeatable."
)
@click.option("--entity", "entities", type=OneOf("an entity", ENTITIES), multiple=True)
@click.option("--from", "start", metavar="DAY", help="First day, YYYY-MM-DD in UTC.")
@click.option("--to", "end", metavar="DAY", help="Last day, included.")
@click.option(
    "--incremental", metavar="NAME", help="Only what is new or changed since the last of that name."
)
@click.option(
    "--guard-formulas", is_flag=True, help="Put ' before CSV cells that a spreadsheet would run."
)
@click.option("--id", "request_id", help="Request id: the same id means the same export.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Copy the finished export to this directory."
)
@click.option("--wait", is_flag=True, help="Wait until it is finished (--out implies it).")
@click.option(
    "--timeout",
    type=Seconds(),
    default=60.0,
    show_default=True,
    help="Give up after this many seconds without news.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the announcement as JSON.")
@click.pass_obj
def export_command(
    context: Context,
    formats: tuple[str, ...],
    entities: tuple[str, ...],
    start: str | None,
    end: str | None,
    incremental: str | None,
    guard_formulas: bool,
    request_id: str | None,
    out: Path | None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> int:
    """Ask the sink for an export of all entities and formats, or of those named.

    An export of a range of days also holds the rows that its rows refer to. The exit code is 5 if
    no sink answers, 7 if some records were not judged in time.
    """
    if request_id is not None and not is_request_id(request_id):
        raise click.UsageError("--id must be 1 to 100 of A-Z a-z 0-9 . _ : -")
    request = msgspec.convert(
        {
            "id": request_id or str(uuid.uuid4()),
            "entities": entities,
            "formats": formats,
            "start": start,
            "end": end,
            "incremental": incremental,
            "guard_formulas": guard_formulas,
            "requested_at": datetime.now(UTC),
        },
        ExportRequest,
    )
    check_request(request)
    if out is not None:
        check_out(out, context.settings.data, context.settings.broker, context.settings.exports)
    with ExitStack() as stack:
        room = None if out is None else stack.enter_context(room_for(out))
        with progress_bar(quiet=as_json) as bar:
            answer = asyncio.run(ask(context, request, bar, timeout, wait=wait or out is not None))
        if answer.status == "failed":
            raise ExportFailedError(f"the export failed: {answer.error}")
        if out is not None and room is not None:
            log.configure("error")  # one notice line, not the log, reports an unavailable place
            places = places_of(answer, context.settings, context.environment, timeout)
            copy(room, out, answer, places)
    if as_json:
        print_json(answer)
    elif answer.status != "finished":
        say(f"Export {answer.id} has been started.")
    else:
        _print(answer, out)
    if answer.complete is False:
        raise Incomplete(_pending(answer))
    return 0


def _print(answer: Announcement, out: Path | None) -> None:
    where = out if out is not None else answer.location
    rows = [(f.path, f.bytes, f.rows, f.sha256[:16]) for f in answer.files]
    print_table(f"Export {answer.id}", ("file", "bytes", "rows", "SHA-256 begins"), rows)
    for entity, reasons in answer.left_out.items():
        for reason, count in reasons.items():
            say(f"{entity}: {count_of(count, 'row')} left out ({reason})")
    if answer.base is not None:
        say(f"What is new or changed since export {answer.base}")
    if answer.full_because is not None:
        say(f"All rows, not only those that changed: {_BECAUSE[answer.full_because]}")
    for entity, reasons in answer.deletions.items():
        for reason, count in reasons.items():
            say(f"{entity}: {count_of(count, 'row')} deleted ({reason})")
    say(f"In {where}")


def _pending(answer: Announcement) -> str:
    """One line: how many records were not judged, and in which inputs."""
    inputs = [(f"{entity}/{q}", n) for entity, by in answer.pending.items() for q, n in by.items()]
    total = sum(count for _, count in inputs)
    named = ", ".join(name for name, _ in inputs[:5])
    more = f" and {len(inputs) - 5} more" if len(inputs) > 5 else ""
    return (
        f"the export is not complete: {count_of(total, 'record was', 'records were')} not judged "
        f"in time, in {named}{more}: "
        "is a worker running for these? ('buddy run')"
    )


async def ask(
    context: Context, request: ExportRequest, bar: Progress, patience: float, *, wait: bool
) -> Announcement:
    """Publish the request and return the sink's answer: its last one with `wait`, else its first.

    Raises NoAnswer after `patience` seconds of silence. A sink that restarts a request again and
    again, and gets no further, counts as silent. Raises MissingTopic and BrokerUnavailable.
    """
    names = context.names
    async with context.broker() as broker:
        wanted = [names.exports, names.export_requests]
        found = await broker.topics(wanted)
        for name in wanted:
            if name not in found:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        return await _answer(broker, names, request, bar, patience, wait=wait)


class Signs:
    """Distinguishes a sink that makes progress from a sink that restarts again and again."""

    def __init__(self) -> None:
        self._attempt: dict[str, set[object]] = {}
        self._earlier: dict[str, set[object]] = {}

    def begun(self, request: str) -> bool:
        """Whether a sink has announced anything for the request."""
        return request in self._attempt

    def is_new(self, answer: Announcement) -> bool:
        """Whether no earlier attempt at the same request made this announcement.

        A repetition within one attempt counts as new: it shows that the sink is alive.
        """
        request = answer.request_id
        if answer.status == "started" and request in self._attempt:
            self._earlier.setdefault(request, set()).update(self._attempt[request])
        step = answer.progress
        said = (answer.status, None if step is None else (step.stage, step.done))
        self._attempt.setdefault(request, set()).add(said)
        return said not in self._earlier.get(request, ())


async def _answer(
    broker: Broker,
    names: Names,
    request: ExportRequest,
    bar: Progress,
    patience: float,
    *,
    wait: bool,
) -> Announcement:
    spans = await broker.spans([Partition(names.exports, 0)])
    reader = broker.reader()
    reader.assign({partition: span.end for partition, span in spans.items()})
    key, value = encode_request(request)
    await broker.publish([ProducerRecord(names.export_requests, key, value, partition=0)])
    shown = bar.add_task("waiting for a sink", total=None)
    clock = asyncio.get_running_loop().time
    heard = clock()
    signs = Signs()
    try:
        while clock() - heard < patience:
            for message in await reader.read(1_000, 0.25):
                answer = decode_announcement(message.value)
                if answer is None:
                    continue
                if signs.is_new(answer):  # also if the sink is busy with another request
                    heard = clock()
                if answer.request_id != request.id:
                    continue
                if answer.status in ("finished", "failed") or not wait:
                    return answer
                if answer.progress is not None:
                    step = answer.progress
                    bar.update(
                        shown,
                        description=_STAGES.get(step.stage, step.stage),
                        completed=step.done,
                        total=step.total,
                    )
    finally:
        await reader.close()
    if signs.begun(request.id):
        raise NoAnswer(
            f"a sink has begun export {request.id}, and nothing has come of it for"
            f" {patience:.0f} s: its log and /ready say why; ask again with --id {request.id}"
        )
    raise NoAnswer(f"no sink has answered for {patience:.0f} s: is one running? ('buddy run')")
