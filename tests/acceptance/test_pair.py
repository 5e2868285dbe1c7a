"""Two sinks on one prefix, as real processes: one freezes in the middle of a scheduled export."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.acceptance.accounts import broker_of, everything
from tests.acceptance.kit import Another, Buddy, Service, eventually
from tests.unit.rows_kit import user
from worker.brokers.embedded.store import FILE_NAME
from worker.exports.verify import verify
from worker.sink.agenda import Standing
from worker.sink.requests import Announcement, decode_announcement, export_id_of
from worker.stream import ProducerRecord

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

ROWS = 30_000
SCHEDULES = [{"name": "monthly", "cron": "0 2 1 * *", "formats": ["csv", "xlsx"]}]


def test_the_other_sink_finishes_what_a_frozen_one_has_begun(another: Another) -> None:
    """Downtime of months is made up for once: by the second sink, since the first one freezes.

    When that one thaws it does no harm, and it can take over again.
    """
    first = another(schedules=json.dumps(SCHEDULES))
    second = first.elsewhere("second", exports=first.directory / "exports")
    asyncio.run(_prepare(first))
    exports = first.directory / "exports"

    frozen = first.start("sink").ready().wait_for("export_started")
    eventually(lambda: bool(list(exports.glob(".*.partial"))), "the first sink writes")
    _freeze(frozen, first)
    assert _finished(exports) == [], "it was frozen before it was done"

    other = second.start("sink").ready().wait_for("sink_active").wait_for("export_finished")
    (directory,) = _finished(exports)
    assert verify(exports / directory).problems == ()
    content = _content(exports)

    frozen.send(signal.SIGCONT)
    frozen.wait_for("sink_passive")  # fenced, or its connection had gone meanwhile
    assert _finished(exports) == [directory]
    assert _content(exports) == content, "nothing finished is ever touched"

    other.stop()
    frozen.wait_for("sink_active", 2)
    first.export("--id", "after", "--format", "csv")
    frozen.stop()
    _check(asyncio.run(_announcements(first)), directory)
    assert [name for name in _finished(exports) if name.endswith(export_id_of("after"))]
    assert len(_finished(exports)) == 2
    assert list(exports.glob(".*.partial")) == []
    runs = first.run("status", "--json").json["schedules"]  # no worker runs
    assert export_id_of(_slot(datetime.now(UTC))) == runs["monthly"]["export"]
    _well_ended([frozen, other])


def _freeze(service: Service, buddy: Buddy) -> None:
    """SIGSTOP between two transactions: others wait for one that holds the embedded log."""
    log = buddy.directory / "broker" / FILE_NAME

    def frozen() -> bool:
        service.freeze()
        if log.exists() and _is_held(log):
            service.send(signal.SIGCONT)
            return False
        return True

    eventually(frozen, "it is frozen between two transactions")


def _is_held(log: Path) -> bool:
    with closing(sqlite3.connect(log, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return True
        connection.execute("ROLLBACK")
        return False


def _well_ended(services: Sequence[Service]) -> None:
    for service in services:
        assert service.result.code == 0, f"{service}"
        assert service.logged("export_internal_error") == []
        assert service.complaints == []


async def _prepare(buddy: Buddy) -> None:
    """Rows enough that writing takes its time, and a schedule that ran 100 days ago."""
    standing = Standing(datetime.now(UTC) - timedelta(days=100))
    value = msgspec.json.encode(standing)
    accepted = buddy.names.accepted("users")
    async with broker_of(buddy) as broker:
        for start in range(0, ROWS, 5_000):
            rows = (user(n) for n in range(start, start + 5_000))
            await broker.publish([ProducerRecord(accepted, key, value) for key, value in rows])
        await broker.publish(
            [ProducerRecord(buddy.names.schedules, b"monthly", value, partition=0)]
        )


async def _announcements(buddy: Buddy) -> list[Announcement]:
    async with broker_of(buddy) as broker:
        (messages,) = (await everything(broker, [buddy.names.exports])).values()
    found = [decode_announcement(message.value) for message in messages]
    return [said for said in found if said is not None and said.status == "finished"]


def _slot(now: datetime) -> str:
    month = now.replace(day=1, hour=2, minute=0, second=0)
    if month > now:
        month = (month - timedelta(days=1)).replace(day=1)
    return f"monthly:{month:%Y%m%dT%H%M%SZ}"


def _check(announced: list[Announcement], directory: str) -> None:
    """One set of announcements by id: the slot's, and that of the request."""
    found = {(said.id, said.request_id): said.directory for said in announced}
    slot = _slot(datetime.now(UTC))
    assert set(found) == {(export_id_of(r), r) for r in (slot, "after")}
    assert found[export_id_of(slot), slot] == directory
    assert all(said.directory == found[said.id, said.request_id] for said in announced)


def _finished(exports: Path) -> list[str]:
    return sorted(path.name for path in exports.glob("[!.]*")) if exports.exists() else []


def _content(exports: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of a finished export."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for name in _finished(exports)
        for path in (exports / name).rglob("*")
    }
