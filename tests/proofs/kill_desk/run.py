"""Kills `desk`, `summary` and `replay` at random moments, then counts what the topics say."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.acceptance.accounts import broker_of
from tests.acceptance.kit import Buddy
from worker.brokers.contract import Broker
from worker.core.decode import Invalid
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER
from worker.core.rejection import reject, timestamp
from worker.core.violations import Code, Violation
from worker.desk.audit import ORIGIN_HEADER, read_audit
from worker.stream import Message, Partition, ProducerRecord

Say = Callable[[str], None]

_NOW: Final = 1_764_547_200_000
_CODES: Final = (Code.INVALID_ENUM, Code.INVALID_EMAIL, Code.WRONG_TYPE)
_BATCH: Final = 5_000
_LONGEST: Final = 600.0
"""Seconds in which a command that nobody kills must have ended."""
_SUMMARY: Final = ("rejections", "summary", "--json")
_REPLAY: Final = (
    *("rejections", "replay", "--entity", "users", "--json"),
    *("--at-once", "--rate", "100000"),
)
_KILLED: Final = {"desk": ("desk",), "summary": _SUMMARY, "replay": _REPLAY}


class Options(NamedTuple):
    """What to do."""

    rejections: int = 1_000_000
    rounds: int = 50
    """Kills of each command."""
    seed: int = 1


class Found(NamedTuple):
    """What came of it."""

    killed: Counter[str]
    faults: list[str]


async def run(options: Options, say: Say) -> Found:
    """Fill a broker of its own with rejections, a fifth of them settled; kill; compare."""
    dice = random.Random(options.seed)
    found = Found(Counter(), [])
    with tempfile.TemporaryDirectory(prefix="buddy-kill-desk-") as folder:
        buddy = Buddy(Path(folder)).create_topics()
        codes = await _fill(buddy, options.rejections)
        say(f"{options.rejections:,} rejections, a fifth of them settled")
        for name, command in _KILLED.items():
            for number in range(options.rounds):
                # Half of the replays read the store of a desk that is killed later.
                desk = buddy.start("desk") if name == "replay" and number % 2 else None
                # The later of the rounds find little left to do, so a kill comes early at times.
                seconds = dice.uniform(0.2, 1.5 if number % 3 else 4.0)
                found.killed[name] += _killed(buddy, command, seconds)
                if desk is not None:
                    desk.kill()
            say(f"{found.killed[name]} of {options.rounds} killed: {name}")
            last = command if name == "replay" else _SUMMARY
            report = buddy.run(*last, deadline=_LONGEST).succeeded().json
            compare = _compare_sent if name == "replay" else _compare_counts
            found.faults.extend([line async for line in compare(buddy, report, options, codes)])
            if name == "desk":  # the next ones are to have something to do
                shutil.rmtree(Path(folder) / "data" / "desk")
    return found


def _killed(buddy: Buddy, command: tuple[str, ...], seconds: float) -> bool:
    """Start the command and kill it after so long; whether it was killed."""
    service = buddy.start(*command)
    try:
        service.process.wait(seconds)
    except subprocess.TimeoutExpired:
        service.kill()
        return True
    service.end().succeeded()
    return False


async def _compare_counts(
    buddy: Buddy, report: Any, options: Options, codes: Counter[str]
) -> AsyncIterator[str]:
    began = time.monotonic()
    buddy.run(*_SUMMARY, deadline=_LONGEST).succeeded()
    seconds = time.monotonic() - began
    expected = options.rejections, options.rejections - _settled(options.rejections)
    if (report["rejections"], report["open"]) != expected:
        yield f"summary says {report['rejections']}, {report['open']} open; expected {expected}"
    counted = {v["code"]: v["records"] for v in report["violations"]}
    if counted != codes:
        yield f"by code it counts {counted}, expected {dict(codes)}"
    if seconds > _LONGEST / 2:
        yield f"a summary with nothing new took {seconds:.0f} s"


async def _compare_sent(
    buddy: Buddy, report: Any, options: Options, _codes: Counter[str]
) -> AsyncIterator[str]:
    """Every open rejection was sent once, the settled ones never."""
    topic, first = buddy.names.input("users"), _settled(options.rejections)
    expected = {f"{topic}/0/{n}".encode() for n in range(first, options.rejections)}
    origins: Counter[bytes] = Counter()
    audited: Counter[bytes] = Counter()
    async with broker_of(buddy) as broker:
        async for message in _all_of(broker, topic, 3):
            origins[dict(message.headers)[ORIGIN_HEADER]] += 1
        async for message in _all_of(broker, buddy.names.replays, 1):
            audit = read_audit(message)
            assert audit is not None
            audited[audit.origin.encode()] += 1
    for what, counts in (("sent", origins), ("in the audit", audited)):
        if twice := [origin for origin, count in counts.items() if count > 1]:
            yield f"{len(twice)} records are {what} more than once, such as {twice[0]!r}"
        if counts.keys() != expected:
            yield (
                f"{len(counts.keys() - expected)} records are {what} that should not be,"
                f" {len(expected - counts.keys())} are not"
            )
    before = report["skipped"].get("sent again before", 0)
    if report["sent"] + before != len(expected):
        yield f"the last replay says {report['sent']} sent and {before} before"
    if report["skipped"].get("accepted or deleted since") != first:
        yield f"the last replay says that {report['skipped']} were skipped"


def _settled(rejections: int) -> int:
    return rejections // 5


async def _fill(buddy: Buddy, rejections: int) -> Counter[str]:
    """Rejections of users, the first fifth of which are settled; how many have each code."""
    codes: Counter[str] = Counter()
    async with broker_of(buddy) as broker:
        batch: list[ProducerRecord] = []
        for record in _records(buddy, rejections, codes):
            batch.append(record)
            if len(batch) == _BATCH:
                await broker.publish(batch)
                batch = []
        await broker.publish(batch)
    return codes


def _records(buddy: Buddy, rejections: int, codes: Counter[str]) -> Iterator[ProducerRecord]:
    names = buddy.names
    for number in range(rejections):
        key, code = b"%d" % number, _CODES[number % len(_CODES)]
        codes[code.value] += 1
        source = Message(names.input("users"), 0, number, _NOW, key, b'{"n":%d}' % number, ())
        invalid = Invalid(key, (Violation(code, "role", "why", "error"),))
        value, _ = reject("users", source, invalid, _NOW, 1 << 20)
        yield ProducerRecord(names.rejected("users"), key, value)
    for number in range(_settled(rejections)):
        headers = (
            (SOURCE_HEADER, f"{names.input('users')}/0/{rejections + number}".encode()),
            (ACCEPTED_AT_HEADER, timestamp(_NOW + 1).encode()),
        )
        yield ProducerRecord(names.accepted("users"), b"%d" % number, b"{}", headers)


async def _all_of(broker: Broker, topic: str, partitions: int) -> AsyncIterator[Message]:
    spans = await broker.spans(Partition(topic, number) for number in range(partitions))
    reader = broker.reader()
    reader.assign({partition: span.start for partition, span in spans.items()})
    try:
        while any(reader.position(p) < span.end for p, span in spans.items()):
            for message in await reader.read(_BATCH, 1.0):
                yield message
    finally:
        await reader.close()
