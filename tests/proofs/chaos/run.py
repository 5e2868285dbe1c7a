"""One run: start everything, stream under faults, heal, wait, export, stop, check."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.kafka_server import KafkaServer
from tests.proofs.chaos.checker import Options as CheckOptions
from tests.proofs.chaos.checker import check, read_export
from tests.proofs.chaos.entities import Topics
from tests.proofs.chaos.faults import Faults
from tests.proofs.chaos.processes import Fleet, environment
from tests.proofs.chaos.pump import Pump
from tests.proofs.chaos.recording import EmbeddedSource, KafkaSource, Recorder, Recording, Source
from tests.proofs.chaos.report import Report
from tests.proofs.chaos.stream import Stream
from worker.brokers.contract import Broker
from worker.cli.connect_broker import connect
from worker.cli.settings import Settings

PREFIX: Final = "buddy"
PATIENCE: Final = 60.0
"""Seconds without a new outcome after which nothing more is expected."""

_NO_COMPACTION: Final = {"log.cleaner.min.compaction.lag.ms": str((1 << 63) - 1)}
# The newest segment is never compacted: a new one every few seconds.
_MUCH_COMPACTION: Final = {"log.roll.ms": "4000", "log.cleaner.backoff.ms": "1000"}


class Options(NamedTuple):
    """What a run is asked for."""

    rounds: int
    seed: int
    seconds: float = 1e9
    broker: str = "kafka"
    workers: int = 3
    partitions: int = 4
    rate: float = 1_500.0
    grace: float = 3.0
    compaction: bool = False
    contested: bool = True
    keep: bool = False


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, flush=True)


async def run(options: Options) -> Report:
    """Run it; every process is dead when this returns or raises.

    Raises `KafkaUnavailable`. The working directory stays if anything was violated, or as asked.
    """
    directory = Path(tempfile.mkdtemp(prefix="buddy-chaos-"))
    say(f"seed {options.seed}, {options.broker}, in {directory}")
    # Its retries in an outage are no news.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    report = Report()
    finished = False
    try:
        async with AsyncExitStack() as stack:
            server = _server(options)
            address = f"embedded:{directory / 'broker'}"
            if server is not None:
                stack.push_async_callback(asyncio.to_thread, server.stop)
                await asyncio.to_thread(server.start)
                stack.callback(_keep_log, server, directory / "kafka.log")
                address = f"kafka://{server.address}"
            await _Run(options, directory, address, server, report, stack).everything()
        finished = True
    finally:
        if finished and report.clean and not options.keep:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            say(f"logs are in {directory}")
    return report


def _server(options: Options) -> KafkaServer | None:
    if options.broker != "kafka":
        return None
    return KafkaServer(settings=_MUCH_COMPACTION if options.compaction else _NO_COMPACTION)


def _keep_log(server: KafkaServer, path: Path) -> None:
    path.write_text(server.log)


class _Run:
    def __init__(
        self,
        options: Options,
        directory: Path,
        address: str,
        server: KafkaServer | None,
        report: Report,
        stack: AsyncExitStack,
    ) -> None:
        self._options = options
        self._directory = directory
        self._address = address
        self._server = server
        self._report = report
        self._stack = stack
        self._random = random.Random(options.seed)
        self._environment = environment(address, directory, options.grace, PREFIX)
        self._topics = Topics(PREFIX)
        self._faults: Counter[str] = Counter()
        self._clocks_wrong: list[tuple[int, int]] = []
        self._began = time.monotonic()
        # What compaction takes away must have been read before.
        self._live = options.broker == "embedded" or options.compaction

    async def everything(self) -> None:
        await self._create_topics()
        broker = connect(Settings(broker=self._address), {})
        await broker.open()
        self._stack.push_async_callback(broker.close)
        fleet = Fleet(self._directory, self._environment, self._random)
        self._stack.callback(fleet.kill)
        recording = Recording(self._directory / "recording")
        recorder = Recorder(self._source(broker), recording, self._topics.every())
        if self._live:
            await recorder.open()
            self._stack.push_async_callback(recorder.close)
            recorder.follow()
        stream = Stream(
            self._options.seed, grace=self._options.grace, contested=self._options.contested
        )
        pump = Pump(broker, self._topics, stream, self._options.rate)
        fleet.sink.start()
        for _ in range(self._options.workers):
            fleet.add_worker()
        await fleet.heal()
        pump.start()
        self._stack.push_async_callback(pump.stop)
        await self._rounds(fleet, pump)
        await fleet.heal()
        await pump.finish()
        say(f"{self._elapsed()} healed; {pump.sent:,} records sent, waiting for their verdicts")
        if not self._live:
            await recorder.open()
            self._stack.push_async_callback(recorder.close)
        await self._wait(recorder, recording, fleet)
        document = await self._export()
        await fleet.end()
        if missing := await recorder.catch_up(self._topics.every(), PATIENCE):
            self._report.violation("not_read", f"{missing} offsets below the high watermarks")
        if self._live:
            await self._count_left(broker)
        self._count(fleet, pump)
        say(f"{self._elapsed()} stopped; checking")
        await asyncio.to_thread(self._check, recording, document)
        say(f"{self._elapsed()} checked")

    def _source(self, broker: Broker) -> Source:
        return EmbeddedSource(broker) if self._server is None else KafkaSource(self._server.address)

    async def _create_topics(self) -> None:
        partitions = str(self._options.partitions)
        code, _, complaint = await self._buddy("topics", "create", "--partitions", partitions)
        if code:
            raise RuntimeError(f"topics create: exit code {code}: {complaint}")

    # --- rounds -------------------------------------------------------------------------------

    async def _rounds(self, fleet: Fleet, pump: Pump) -> None:
        faults = Faults(
            fleet, self._server, self._ask, self._random, max(3, self._options.workers + 1)
        )
        self._clocks_wrong = faults.clocks_wrong
        began = time.monotonic()
        told = 0
        for number in range(1, self._options.rounds + 1):
            if time.monotonic() - began > self._options.seconds:
                say(f"{self._elapsed()} the time is up")
                break
            fault = await faults.one()
            self._faults[fault] += 1
            await asyncio.sleep(self._random.uniform(1, 4))
            fleet.look()
            pump.check()
            behind = await pump.behind()
            say(
                f"{self._elapsed()} round {number}: {fault}; sent {pump.sent:,}, behind {behind}, "
                f"workers {len(fleet.running)}/{len(fleet.workers)}, "
                f"commits failed {fleet.events['commit_failed']}"
            )
            for problem in fleet.problems[told:]:
                say(f"         {problem}")
            told = len(fleet.problems)

    async def _ask(self) -> None:
        """Ask for an export and do not wait; it will have to be finished in the end."""
        code, _, complaint = await self._buddy("export", "--format", "json", "--timeout", "10")
        if code not in (0, 4, 5):  # Kafka away, the sink away: neither loses a request made
            self._report.violation("export_refused", f"exit code {code}: {complaint}")

    # --- the end ------------------------------------------------------------------------------

    async def _wait(self, recorder: Recorder, recording: Recording, fleet: Fleet) -> None:
        """Until every input has its outcome, or nothing has come for long."""
        inputs = list(self._topics.inputs.values())
        await recorder.catch_up(inputs, PATIENCE)
        sent = sum(recording.counts[topic] for topic in inputs)
        quiet = time.monotonic()
        while True:
            judged = sum(recording.counts[topic] for topic in self._topics.outcomes())
            if judged >= sent:
                return
            if await recorder.step(0.5):
                now = sum(recording.counts[topic] for topic in self._topics.outcomes())
                quiet = time.monotonic() if now > judged else quiet
            fleet.look()
            if time.monotonic() - quiet > PATIENCE:
                missing = f"{sent - judged} without outcome after {PATIENCE:.0f} s of silence"
                say(f"{self._elapsed()} {missing}")
                if not self._live:  # else compaction may have been faster than the recorder
                    self._report.violation("stalled", missing)
                return

    async def _export(self) -> Path | None:
        out = self._directory / "final-export"
        code, text, complaint = await self._buddy(
            "export", "--format", "json", "--wait", "--json", "--timeout", "120",
            "--id", str(uuid.UUID(int=self._random.getrandbits(128), version=4)), "--out", str(out),
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
        if code or answer.get("complete") is not True:
            self._report.violation(
                "export_incomplete", f"exit code {code}: {complaint} {text[:500]}"
            )
        return next(iter(sorted(out.glob("buddy_export_*.json"))), None)

    async def _count_left(self, broker: Broker) -> None:
        """How much of the accepted topics compaction has left: proof that there was any."""
        accepted = list(self._topics.accepted.values())
        left = Recording(self._directory / "left")
        recorder = Recorder(self._source(broker), left, accepted)
        try:
            await recorder.open()
            await recorder.catch_up(accepted, PATIENCE)
        finally:
            await recorder.close()
        self._report.counts["accepted messages left by compaction"] = left.counts.total()

    def _count(self, fleet: Fleet, pump: Pump) -> None:
        counts = self._report.counts
        counts["rounds"] = self._faults.total()
        counts["sent again after a failure"] = pump.again
        for name, count in self._faults.items():
            counts[f"faults: {name}"] = count
        counts["transactions fenced or failed (commit_failed)"] = fleet.events["commit_failed"]
        for name, count in fleet.events.items():
            counts[f"log events: {name}"] = count
        for problem in fleet.problems:
            self._report.violation("process", problem)

    def _check(self, recording: Recording, document: Path | None) -> None:
        exported = None
        try:
            exported = None if document is None else read_export(document)
        except (ValueError, KeyError, OSError) as error:
            self._report.violation("export_unreadable", f"{type(error).__name__}: {error}")
        asked = CheckOptions(
            PREFIX, int(self._options.grace * 1000), self._live, self._clocks_wrong
        )
        check(recording, exported, asked, self._report)

    async def _buddy(self, *arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker.cli.main", *arguments,
            cwd=self._directory, env=self._environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        complaint = err.decode(errors="replace").strip()
        if "Traceback" in complaint:
            self._report.violation("process", f"buddy {arguments[0]}: {complaint[-2000:]}")
        assert process.returncode is not None
        return process.returncode, out.decode(errors="replace"), complaint

    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._began:6.1f} s"
