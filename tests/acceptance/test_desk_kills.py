"""The desk's store counts each rejection once, whatever dies while it is filled."""

from __future__ import annotations

import random
import signal
import subprocess
from collections import Counter
from typing import Final

import pytest

from tests.acceptance.kit import Buddy
from tests.unit.embedded_kit import opened
from worker.core.decode import Invalid
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER
from worker.core.rejection import reject, timestamp
from worker.core.violations import Code, Violation
from worker.stream import Message, ProducerRecord

pytestmark = pytest.mark.acceptance

NOW: Final = 1_764_547_200_000
REJECTIONS: Final = 20_000
SETTLED: Final = 5_000
KILLS: Final = 8


async def fill(buddy: Buddy) -> Counter[str]:
    """Rejections of users, a quarter of which are settled; how many have each code."""
    names, codes = buddy.names, [Code.INVALID_ENUM, Code.INVALID_EMAIL, Code.WRONG_TYPE]
    sent: Counter[str] = Counter()
    batch: list[ProducerRecord] = []
    for number in range(REJECTIONS):
        code = codes[number % len(codes)]
        sent[code] += 1
        source = Message(names.input("users"), 0, number, NOW, None, b"{}", ())
        invalid = Invalid(b"%d" % number, (Violation(code, "role", "why", "error"),))
        value, _ = reject("users", source, invalid, NOW, 1 << 20)
        batch.append(ProducerRecord(names.rejected("users"), b"%d" % number, value))
    headers = (
        (SOURCE_HEADER, f"{names.input('users')}/1/0".encode()),
        (ACCEPTED_AT_HEADER, timestamp(NOW + 1).encode()),
    )
    batch += [
        ProducerRecord(names.accepted("users"), b"%d" % number, b"{}", headers)
        for number in range(SETTLED)
    ]
    async with opened(buddy.directory / "broker") as broker:
        for first in range(0, len(batch), 2_000):
            await broker.publish(batch[first : first + 2_000])
    return sent


async def test_a_summary_killed_in_the_middle_counts_nothing_twice(local: Buddy) -> None:
    buddy = local.create_topics()
    sent = await fill(buddy)
    dice = random.Random(7)
    killed = 0
    for _ in range(KILLS):
        process = buddy.start("rejections", "summary", "--json")
        try:
            process.process.wait(dice.uniform(0.3, 1.2))
        except subprocess.TimeoutExpired:
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
            killed += 1
    assert killed
    found = buddy.run("rejections", "summary", "--json").succeeded().json
    assert (found["rejections"], found["open"]) == (REJECTIONS, REJECTIONS - SETTLED)
    assert {v["code"]: v["records"] for v in found["violations"]} == sent
