"""A producer starts to send a wrong role: ops see what, whose and since when, and work it off."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.acceptance.accounts import broker_of
from tests.acceptance.kit import Another, Buddy, eventually
from tests.maven import free_ports
from tests.unit.rows_kit import user
from worker.cli.incidents import glance
from worker.desk.detection import BUCKET_MS
from worker.stream import ProducerRecord

pytestmark = pytest.mark.acceptance

BAD = 90
OF = 300
A_MINUTE = 60.0


async def send(buddy: Buddy, first: int, *, producer: bytes, bad: int) -> None:
    """A batch of users, of which the first `bad` ones are mentors, a role that does not exist."""
    topic = buddy.names.input("users")
    rows = [user(first + n) for n in range(OF)]
    batch = [
        ProducerRecord(
            topic,
            key,
            value.replace(b'"buddy"', b'"mentor"') if number < bad else value,
            (("buddy-producer", producer),),
        )
        for number, (key, value) in enumerate(rows)
    ]
    async with broker_of(buddy) as broker:
        await broker.publish(batch)


def incidents(buddy: Buddy) -> list[dict[str, Any]]:
    """What `status` says is open."""
    found: list[dict[str, Any]] = (
        buddy.run("status", "--json").succeeded().json["rejection_incidents"]
    )
    return found


def looked(buddy: Buddy) -> int:
    """When the desk has looked last, in milliseconds since 1970."""
    found = glance(buddy.directory / "data" / "desk", buddy.names, int(time.time() * 1000))
    return 0 if found is None else found.looked


def metrics_at(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text: str = answer.read().decode()
    return text


async def test_within_a_minute_all_say_what_whose_and_since_when(another: Another) -> None:
    (port,) = free_ports(1)
    buddy = another(grace_seconds=1, metrics_port=port)
    service = buddy.start("run").ready()
    await send(buddy, 0, producer=b"crm", bad=2)
    sent = time.time() * 1000
    eventually(lambda: looked(buddy) >= sent + 2 * BUCKET_MS, "the desk has looked at these")
    assert incidents(buddy) == []
    began, clock = datetime.now(UTC), time.monotonic()
    batches = 0
    while not service.logged("incident_opened"):
        assert time.monotonic() - clock < A_MINUTE
        batches += 1
        await send(buddy, OF * batches, producer=b"import", bad=BAD)
        buddy.run("rejections", "summary").succeeded()  # the desk has read it
    (found,) = incidents(buddy)
    assert (found["entity"], found["violations"]) == ("users", [["invalid_enum", "role"]])
    assert found["producers"] == ["import"]
    since = datetime.fromisoformat(found["since"])
    assert abs((since - began).total_seconds()) <= 10
    shown = buddy.run("status").succeeded().out
    for part in ("Rejections: incident:", "role: invalid_enum", "producers: import", "since "):
        assert part in shown
    metrics = await asyncio.to_thread(metrics_at, port)
    labels = 'code="invalid_enum",entity="users",field="role",producer="import",what="rejections"'
    assert f"buddy_incident_since_timestamp_seconds{{{labels}}}" in metrics
    assert 'buddy_incident_open{entity="users",what="rejections"} 1.0' in metrics

    chosen = ("--code", "invalid_enum", "--producer", "import")
    done = buddy.run("rejections", "replay", *chosen, "--wait", "--json").json
    bad = BAD * batches
    assert (done["sent"], done["rejected"]) == (bad, bad), "nobody has mended them"
    again = buddy.run("rejections", "replay", *chosen, "--max-replays", "1", "--json").json
    assert again["sent"] == 0
    for batch in range(batches + 1):
        await send(buddy, OF * batch, producer=b"import", bad=0)

    def is_empty() -> bool:
        return bool(buddy.run("rejections", "summary", "--json").json["open"] == 0)

    eventually(is_empty, "the list is empty")
    service.stop().succeeded()
