"""SIGTERM, SIGINT, SIGHUP: finish what is in hand, commit, exit 0; the second one ends at once."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.acceptance.accounts import Outcomes, books_of, broker_of
from tests.acceptance.kit import Another, Buddy, Service, eventually
from tests.acceptance.material import user, write_rows

pytestmark = pytest.mark.acceptance

INTERRUPTED = 130
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def test_what_is_in_hand_is_finished(another: Another, tmp_path: Path) -> None:
    """Stopped in the middle of a stream and started again, by either signal: all is accounted."""
    buddy = another(grace_seconds=2)
    write_rows(tmp_path / "rows", {"users": [user() for _ in range(6_000)]})
    async with broker_of(buddy) as broker:
        outcomes = Outcomes(broker, buddy.names)
        await outcomes.open()
        sending = asyncio.create_task(asyncio.to_thread(buddy.run, "send", tmp_path / "rows"))
        for number, share in zip(SIGNALS, (0.01, 0.3), strict=True):
            service = buddy.start("run").ready()
            await outcomes.reach(int(share * 6_000))
            stopped = await asyncio.to_thread(service.stop, number)
            assert stopped.code == 0, f"{stopped}"
            assert service.logged("stopping") == [
                {**service.logged("stopping")[0], "signal": number.name}
            ]
            assert service.logged("worker_stopped")
            assert service.logged("sink_stopped")
            assert not service.complaints
        await sending
        service = buddy.start("run").ready()  # all may have been judged before it starts
        await outcomes.reach(6_000)
        await outcomes.close()
    await asyncio.to_thread(service.stop)
    assert service.result.code == 0
    (await books_of(buddy)).balance()


@pytest.mark.parametrize(
    ("command", "number"),
    [("worker", SIGNALS[0]), ("sink", SIGNALS[1]), ("run", signal.SIGHUP)],
)
def test_each_service_ends_in_order(another: Another, command: str, number: signal.Signals) -> None:
    service = another().start(command).ready()
    stopped = service.stop(number)
    assert stopped.code == 0, f"{stopped}"
    assert not service.complaints


def test_a_signal_before_it_is_ready(another: Another) -> None:
    service = another().start("run")
    service.wait_for("index_restoring")
    stopped = service.stop()
    assert stopped.code == 0, f"{stopped}"
    assert not service.complaints


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_at_once(local: Buddy, number: signal.Signals) -> None:
    """The disk hangs (another process holds the log), so that the first signal has to wait."""
    service = local.start("run").ready()
    log = sqlite3.connect(local.directory / "broker" / "log.sqlite", isolation_level=None)
    try:
        log.execute("BEGIN IMMEDIATE")
        service.send(signal.SIGTERM)
        service.wait_for("stopping")
        assert service.process.poll() is None
        service.send(number)
        ended = service.end(deadline=3)
    finally:
        log.close()
    assert ended.code == 128 + number, f"{ended}"


def test_under_nohup_a_service_outlives_its_terminal(local: Buddy) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    service = local.start("worker", before=nohup).ready()
    service.send(signal.SIGHUP)
    stopped = service.stop()
    assert stopped.code == 0, f"{stopped}"
    assert [line["signal"] for line in service.logged("stopping")] == ["SIGTERM"]


def test_interrupting_those_who_wait(another: Another) -> None:
    """Ctrl-C on `rejections watch` and on `send --wait`: one line and exit code 130."""
    buddy = another()
    (buddy.directory / "users.ndjson").write_bytes(b"{}\n")
    service = buddy.start("run").ready()
    watching = buddy.start("rejections", "watch", "--from-start")
    buddy.run("send", "users.ndjson", "--wait")
    when, where, *_ = watching.printed(1)[0].split()
    assert re.fullmatch(r"[0-9]{2}:[0-9]{2}:[0-9]{2}", when)
    assert where.endswith("/0")
    interrupted(watching)
    service.stop().succeeded()
    sending = buddy.start("send", "users.ndjson", "--wait")

    def sent() -> bool:
        return int(buddy.run("status", "--json").json["entities"]["users"]["lag"]) == 1

    eventually(sent, "the record on its topic")
    interrupted(sending)


def interrupted(service: Service) -> None:
    ended = service.stop(signal.SIGINT)
    assert ended.code == INTERRUPTED, f"{ended}"
    # The empty line ends the one on which a terminal shows ^C.
    assert ended.err == "\nbuddy: interrupted\n"
