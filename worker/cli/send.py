"""`buddy send` and `buddy delete`: publish records to the input topics."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.cli.console import (
    Context,
    OneOf,
    Seconds,
    count_of,
    notices,
    print_json,
    print_table,
    progress_bar,
    say,
)
from worker.cli.inputs import Mismatches, refuse_special, standard_input
from worker.cli.outcomes import Outcomes
from worker.cli.settings import Settings
from worker.core.keys import form_of, read_key
from worker.core.sending import KeyReader
from worker.desk.seen import LONGEST_PRODUCER, PRODUCER_HEADER
from worker.errors import MessageRefused, UsageError
from worker.files import (
    READ_LIMIT,
    FileRecord,
    InputFile,
    Notice,
    OnMismatch,
    as_utf8,
    expand,
    read_ndjson,
)
from worker.stream import Headers, ProducerRecord

if TYPE_CHECKING:
    from rich.progress import Progress

_BATCH = 2_000
ENTITY = click.option(
    "--entity",
    type=OneOf("an entity", ENTITIES),
    help="Entity of the records, if no file name tells.",
)


WAIT = click.option("--wait", is_flag=True, help="Wait until every record is judged, and count.")
TIMEOUT = click.option(
    "--timeout",
    type=Seconds(),
    default=120.0,
    show_default=True,
    help="Give up after this many seconds without an outcome.",
)


PRODUCER = click.option(
    "--producer",
    metavar="NAME",
    help="Name the sender, for those who look at rejections.",
)


@click.command("send")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@ENTITY
@WAIT
@TIMEOUT
@PRODUCER
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.pass_obj
def send_command(
    context: Context,
    paths: tuple[str, ...],
    entity: str | None,
    wait: bool,
    timeout: float,
    producer: str | None,
    as_json: bool,
) -> int:
    """Send the records of NDJSON, CSV, JSON or XLSX files, or of directories of them.

    Files may be Buddy exports, saved by Excel or written by hand. All but XLSX may be compressed
    with gzip. If PATH is -, the command reads NDJSON from standard input. The exit code
    is 1 if a file holds another number of records than it or its export states. With --wait, it is
    also 1 if any record is rejected, 5 if no verdicts come, and 3 if an input topic, or one of
    verdicts, is deleted or created anew meanwhile: then nobody can tell the verdicts.
    """
    noticed: list[str] = []
    notice = notices(noticed)
    mismatches = Mismatches(notice)
    sources = sources_of(paths, entity, notice, mismatches.add)
    limit = read_limit(context.settings)
    if sources is None:
        records = _standard_input(str(entity), limit)
    else:
        records = _records(sources, limit, notice, mismatches.add)
    headers = producer_headers(producer)
    with progress_bar(quiet=as_json) as bar:
        sending = _Sending(context, bar, headers)
        outcomes = asyncio.run(sending.run(records, timeout if wait else None))
    result = {"sent": outcomes.sent.total()}
    if wait:
        result |= {"accepted": outcomes.accepted, "rejected": outcomes.rejected}
    if as_json:
        codes = {f"{e}.{code}": n for (e, code), n in sorted(outcomes.codes.items())}
        told = {"mismatches": mismatches.found, "notices": noticed}
        print_json(result | ({"violations": codes} if wait else {}) | told)
    else:
        if wait:
            print_outcomes(outcomes)
        else:
            say(f"{count_of(outcomes.sent.total(), 'record')} sent.")
        mismatches.print_count()
    if sending.refused:
        first, size = sending.refused[0]
        raise MessageRefused(
            f"{first.where}: a record of {size} bytes is more than the broker "
            f"takes; {count_of(len(sending.refused), 'such record was', 'such records were')} "
            "not sent, all others were"
        )
    return 1 if mismatches.found or (wait and outcomes.rejected) else 0


def producer_headers(name: str | None) -> Headers:
    """The header that names the producer of a record. Raises UsageError."""
    if name is None:
        return ()
    if not 1 <= len(name) <= LONGEST_PRODUCER or not name.isprintable():
        raise UsageError(f"--producer must have 1 to {LONGEST_PRODUCER} printable characters")
    return ((PRODUCER_HEADER, name.encode()),)


def print_outcomes(outcomes: Outcomes) -> None:
    """Print how many records were accepted and rejected, and what was found in them."""
    if outcomes.codes:
        rows = [(e, code, n) for (e, code), n in sorted(outcomes.codes.items())]
        print_table("What was found", ("entity", "code", "records"), rows)
    say(f"{outcomes.accepted} accepted, {outcomes.rejected} rejected.")


def sources_of(
    paths: tuple[str, ...], entity: str | None, notice: Notice, mismatch: OnMismatch
) -> list[InputFile] | None:
    """The files that the paths name; None for standard input ("-"). Raises UsageError."""
    if "-" not in paths:
        for path in paths:
            refuse_special(path)
        return expand([Path(path) for path in paths], entity, notice, mismatch)
    if len(paths) > 1:
        raise UsageError("'-' (standard input) goes alone")
    if entity is None:
        raise UsageError("standard input needs --entity")
    return None


def read_limit(settings: Settings) -> int:
    """The size in bytes up to which a record of a file is read whole."""
    return max(READ_LIMIT, settings.max_record_bytes + 1)


def _standard_input(entity: str, limit: int) -> Iterator[FileRecord]:
    yield from read_ndjson(as_utf8(standard_input(), "-"), entity, "-", limit=limit)


def _records(
    sources: list[InputFile], limit: int, notice: Notice, mismatch: OnMismatch
) -> Iterator[FileRecord]:
    for source in sources:
        yield from source.read(limit=limit, notice=notice, mismatch=mismatch)


class _Sending:
    """Sends records in batches, in their order. `refused` holds those too large for the broker."""

    def __init__(self, context: Context, bar: Progress, headers: Headers) -> None:
        self.refused: list[tuple[FileRecord, int]] = []
        self._context = context
        self._bar = bar
        self._headers = headers
        self._keys = {name: KeyReader(entity) for name, entity in ENTITIES.items()}
        self._limits: dict[str, int] = {}

    async def run(self, records: Iterator[FileRecord], patience: float | None) -> Outcomes:
        """Send all records and return their outcomes.

        With `patience`, wait until all are judged. Raises NoAnswer after `patience` seconds without
        a new outcome.
        """
        names = self._context.names
        sending = self._bar.add_task("sending", total=None)
        async with self._context.broker() as broker:
            inputs = [names.input(entity) for entity in ENTITIES]
            topics = await broker.topics(inputs)
            self._limits = {name: topic.max_message_bytes for name, topic in topics.items()}
            outcomes = Outcomes(broker, names)
            if patience is not None:
                await outcomes.open()
            while batch := await asyncio.to_thread(list, islice(records, _BATCH)):
                await self._send(broker, batch, outcomes)
                self._bar.advance(sending, len(batch))
            total = outcomes.sent.total()
            self._bar.update(sending, total=total, completed=total)
            if patience is not None:
                judging = self._bar.add_task("judged", total=total)
                await outcomes.wait(
                    patience, lambda done: self._bar.update(judging, completed=done)
                )
            await outcomes.close()
        return outcomes

    async def _send(self, broker: Broker, batch: list[FileRecord], outcomes: Outcomes) -> None:
        outgoing = [(r, message) for r in batch if (message := self._message(r)) is not None]
        while outgoing:
            messages = [message for _, message in outgoing]
            try:
                outcomes.add_sent(messages, await broker.publish(messages))
            except MessageRefused as error:
                if not error.refused:
                    raise
                # A broker counts headers and some bytes of its own. It has sent nothing.
                for index in error.refused:
                    record = outgoing[index][0]
                    self.refused.append((record, len(record.value)))
                outgoing = [one for n, one in enumerate(outgoing) if n not in error.refused]
            else:
                return

    def _message(self, record: FileRecord) -> ProducerRecord | None:
        topic = self._context.names.input(record.entity)
        key = self._keys[record.entity].read(record.value)
        size = record.oversize or len(record.value)
        if record.oversize or size + len(key or b"") > self._limits.get(topic, size * 2):
            self.refused.append((record, size))
            return None
        return ProducerRecord(topic, key, record.value, self._headers)


@click.command("delete")
@click.argument("entity", type=OneOf("an entity", ENTITIES), metavar="ENTITY")
@click.argument("keys", nargs=-1, required=True, metavar="KEY…")
@click.pass_obj
def delete_command(context: Context, entity: str, keys: tuple[str, ...]) -> int:
    """Delete rows of ENTITY by their keys (a composite key is written a:b)."""
    canonical = []
    for key in keys:
        found = read_key(ENTITIES[entity], os.fsencode(key))
        if found is None:
            form = form_of(ENTITIES[entity])
            raise UsageError(f"{key[:80]!r} is no key of {entity}: expected {form}")
        canonical.append(found)

    async def run(broker_context: Context) -> None:
        async with broker_context.broker() as broker:
            await _delete(broker, broker_context.names.input(entity), canonical)

    asyncio.run(run(context))
    say(f"{count_of(len(canonical), 'deletion')} sent.")
    return 0


async def _delete(broker: Broker, topic: str, keys: list[bytes]) -> None:
    await broker.publish([ProducerRecord(topic, key, None) for key in keys])
