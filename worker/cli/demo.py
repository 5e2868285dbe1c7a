"""`buddy demo`: a made-up programme end to end, from records to a verified export."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click
from rich.progress import Progress

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.cli.console import Context, count_of, print_table, progress_bar, say
from worker.cli.export import ask
from worker.cli.outcomes import Outcomes
from worker.cli.settings import Settings
from worker.core.topics import Names, wanted
from worker.core.violations import WARNINGS, Code
from worker.demo.record import Record
from worker.demo.record_stream import stream
from worker.errors import BuddyError, StateError
from worker.exports.verify import Verification, verify
from worker.sink.requests import Announcement, ExportRequest
from worker.stream import ProducerRecord

_MARK = ".buddy-demo"
_GRACE_SECONDS = 2
_BATCH = 500


class DemoFailedError(BuddyError):
    """The demo failed, or its outcome is not the expected one."""


class Expected:
    """The expected outcomes of the sent records."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.codes: Counter[tuple[str, str]] = Counter()

    def add(self, record: Record) -> None:
        """Add the expected outcome of one record."""
        bad = any(code not in WARNINGS for code in record.expect)
        (self.rejected if bad else self.accepted)[record.entity] += 1
        for code in set(record.expect):
            self.codes[record.entity, code] += 1


@click.command("demo")
@click.option("--records", default=20_000, show_default=True, type=click.IntRange(min=100))
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--directory",
    default="buddy-demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
)
@click.option("--stay", is_flag=True, help="Serve the console afterwards, until Ctrl-C.")
def demo_command(records: int, seed: int, directory: Path, stay: bool) -> int:
    """Stream a made-up programme through broker, worker and sink, and cut a verified export."""
    _make_room(directory)
    options = {
        "broker": f"embedded:{directory / 'broker'}",
        "data": str(directory / "data"),
        "exports": str(directory / "exports"),
    }
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("BUDDY_")
    } | {"BUDDY_GRACE_SECONDS": str(_GRACE_SECONDS), "BUDDY_SCHEDULES": "[]"}
    port = _free_port() if stay else 0
    if stay:
        environment |= {"BUDDY_HTTP": "true", "BUDDY_HTTP_PORT": str(port)}
    context = Context(os.devnull, options, environment)
    asyncio.run(_create_topics(context))
    with _services(options, environment, directory / "run.log") as process:
        outcomes, expected, answer = asyncio.run(_stream(context, records, seed, process))
        finished = directory / "exports" / (answer.directory or "")
        _report(outcomes, expected, answer, verify(finished), finished, directory)
        if stay:
            say(f"Console:     http://127.0.0.1:{port}/    (Ctrl-C stops it)")
            with suppress(KeyboardInterrupt):
                process.wait()
    return 0


def _make_room(directory: Path) -> None:
    """Create the directory empty. Removes an earlier demo's files only. Raises StateError."""
    try:
        if directory.exists() and not (directory / _MARK).exists() and any(directory.iterdir()):
            raise StateError(f"{directory} was not made by a demo: name another with --directory")
        shutil.rmtree(directory, ignore_errors=False) if directory.exists() else None
        directory.mkdir(parents=True)
        (directory / _MARK).touch()
    except OSError as error:
        raise StateError(f"{directory} cannot be written: {error.strerror}") from None


def _free_port() -> int:
    """The usual port of the API if it is free, else another one."""
    for port in (Settings().http_port, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise StateError("no port of this machine is free")


async def _create_topics(context: Context) -> None:
    async with context.broker() as broker:
        topics = wanted(Names(), context.settings.partitions, context.settings.max_record_bytes)
        await broker.create(topics.values())


@contextmanager
def _services(
    options: dict[str, str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Worker and sink in a separate process, stopped by SIGTERM at the end."""
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "worker.cli.main", "--config", os.devnull, *given]
    command += ["run", "--until-eof"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=stream, stderr=stream
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.stdin is not None:
                process.stdin.close()


async def _stream(
    context: Context, records: int, seed: int, process: subprocess.Popen[bytes]
) -> tuple[Outcomes, Expected, Announcement]:
    async with context.broker() as broker:
        outcomes, expected = Outcomes(broker, Names()), Expected()
        await outcomes.open()
        with progress_bar() as bar:
            await _send(broker, outcomes, expected, stream(records, seed, datetime.now(UTC)), bar)
            if process.poll() is not None:
                raise DemoFailedError("worker and sink have stopped: see run.log beside the data")
        request = ExportRequest(id=f"demo-{seed}")
        with progress_bar() as bar:
            answer = await ask(context, request, bar, patience=60.0, wait=True)
        await outcomes.close()
    if answer.status != "finished":
        raise DemoFailedError(f"the export failed: {answer.error}")
    return outcomes, expected, answer


async def _send(
    broker: Broker,
    outcomes: Outcomes,
    expected: Expected,
    records: Iterator[Record],
    bar: Progress,
) -> None:
    sent = bar.add_task("sent", total=None)
    judged = bar.add_task("judged", total=None)
    second: list[Record] = []

    async def send(batch: list[Record]) -> None:
        messages = [
            ProducerRecord(
                Names().input(r.entity), None if r.key is None else r.key.encode(), r.value
            )
            for r in batch
        ]
        outcomes.add_sent(messages, await broker.publish(messages))
        for record in batch:
            expected.add(record)
        bar.advance(sent, len(batch))
        await outcomes.refresh()
        bar.update(judged, completed=outcomes.judged)

    while batch := list(islice(records, _BATCH)):
        second += [record for record in batch if Code.DUPLICATE_EMAIL in record.expect]
        await send([record for record in batch if Code.DUPLICATE_EMAIL not in record.expect])
    await outcomes.wait(60.0, lambda done: bar.update(judged, completed=done))
    # The first claim of an address wins, and partitions have no order between them. So the second
    # claims are sent after the verdicts on the first ones.
    await send(second)
    total = sum(outcomes.sent.values())
    bar.update(sent, total=total)
    bar.update(judged, total=total)
    await outcomes.wait(60.0, lambda done: bar.update(judged, completed=done))


def _report(
    outcomes: Outcomes,
    expected: Expected,
    answer: Announcement,
    verified: Verification,
    finished: Path,
    directory: Path,
) -> None:
    rows = [
        (e, outcomes.accepted_by[e], outcomes.rejected_by[e], (answer.counts or {}).get(e, 0))
        for e in ENTITIES
    ]
    print_table(
        f"{sum(outcomes.sent.values()):,} records sent and judged",
        ("entity", "accepted", "rejected", "rows in the export"),
        rows,
        "updates, deletions and rows whose user is gone make the difference to the export",
    )
    codes = sorted(
        outcomes.codes.items(), key=lambda item: (list(ENTITIES).index(item[0][0]), item)
    )
    print_table(
        "What was found",
        ("entity", "code", "severity", "records"),
        [(e, c, "warning" if c in WARNINGS else "error", n) for (e, c), n in codes],
    )
    print_table(
        "The export", ("file", "bytes", "rows"), [(f.path, f.bytes, f.rows) for f in answer.files]
    )
    problems = [*verified.problems, *_differences(outcomes, expected)]
    if problems:
        raise DemoFailedError(f"{problems[0]} ({count_of(len(problems), 'problem')} in all)")
    say("Every verdict is the one that was expected; the export has been read back whole.")
    say(f"Export:      {finished}")
    say(f"Log:         {directory / 'run.log'}")
    ours = f"--broker embedded:{directory}/broker --data {directory}/data"
    say(f"Rejections:  .venv/bin/buddy {ours} rejections summary")


def _differences(outcomes: Outcomes, expected: Expected) -> Iterator[str]:
    for entity in ENTITIES:
        if outcomes.accepted_by[entity] != expected.accepted[entity]:
            yield (
                f"{entity}: {outcomes.accepted_by[entity]} accepted, "
                f"expected {expected.accepted[entity]}"
            )
    for kind in sorted(outcomes.codes.keys() | expected.codes.keys()):
        if outcomes.codes[kind] != expected.codes[kind]:
            entity, code = kind
            yield f"{entity}: {outcomes.codes[kind]} {code}, expected {expected.codes[kind]}"
