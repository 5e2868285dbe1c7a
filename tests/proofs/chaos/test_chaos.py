"""The chaos test for CI: as many rounds as fit into `BUDDY_CHAOS_SECONDS`, on each broker.

A failure prints the seed and the directory of the logs. `BUDDY_CHAOS_SEED` replays a seed's stream
and faults; their timing against the processes stays the machine's own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.kafka_server import KafkaUnavailable, jars
from tests.paths import ROOT

SECONDS = float(os.environ.get("BUDDY_CHAOS_SECONDS", "20"))
WAITS = 300.0
"""Seconds beside the rounds: start, healing, the last verdicts, export, the checker."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + WAITS + 60)]


def _need_kafka() -> None:
    problem = None
    try:
        jars()
    except KafkaUnavailable as error:
        problem = str(error)
    if shutil.which("java") is None:
        problem = "no Java to run Kafka with (17 or newer)"
    if problem is None:
        return
    if os.environ.get("BUDDY_REQUIRE_KAFKA") == "1":
        pytest.fail(f"Kafka is required (BUDDY_REQUIRE_KAFKA=1): {problem}", pytrace=False)
    pytest.skip(f"no Kafka: {problem}")


@pytest.mark.parametrize("broker", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_every_promise_holds_whatever_dies(broker: str) -> None:
    if broker == "kafka":
        _need_kafka()
    seed = os.environ.get("BUDDY_CHAOS_SEED") or str(int(time.time()))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.proofs.chaos", "--broker", broker, "--rounds", "100000",
         "--seconds", str(SECONDS), "--seed", seed, "--rate", "1000"],
        cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=SECONDS + WAITS)
    except BaseException:
        process.send_signal(signal.SIGTERM)  # it kills its own children
        said, _ = process.communicate()
        print(said)
        raise
    print(said)
    assert process.returncode == 0, f"chaos on {broker} with seed {seed}"
