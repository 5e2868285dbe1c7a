"""Fixtures for everything: real servers where they can be had, and how long Hypothesis searches."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from tests import s3_server
from tests.kafka_server import KafkaServer, running

settings.register_profile("quick", deadline=None, max_examples=10)
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("BUDDY_HYPOTHESIS", "default"))


def pytest_configure() -> None:
    """What tests start gets the signals it is sent, also where this run ignores them.

    A background job ignores SIGINT, nohup SIGHUP, and an ignored signal is inherited. One that is
    handled is not: so this run goes on ignoring them, by a handler that does nothing.
    Nor does the width of the terminal that it runs in reach what is tested.
    """
    os.environ.pop("COLUMNS", None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # `make coverage` measures this process alone: some tests look at all that a process says.
        os.environ.pop("COVERAGE_PROCESS_START", None)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that was run in this process has said which log lines are wanted, and where."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def kafka_address() -> Iterator[str]:
    """`host:port` of a broker that all tests share: name topics and groups so that none clash.

    `BUDDY_TEST_KAFKA` if set, else one that is started here for the session.
    """
    given = os.environ.get("BUDDY_TEST_KAFKA")
    if given:
        yield given
        return
    with running(KafkaServer()) as server:
        yield server.address


@pytest.fixture
def kafka_server() -> Iterator[KafkaServer]:
    """A running broker of this test's own, to be killed and restarted as it likes."""
    with running(KafkaServer()) as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    """An S3 server that all tests share; each takes buckets of its own."""
    with s3_server.running(s3_server.S3Server()) as server:
        yield server
