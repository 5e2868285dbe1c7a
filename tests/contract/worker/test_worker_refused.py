"""A message that the broker refuses: the record behind it is rejected, the task goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import encode, milestone, user, uuid
from worker.brokers.contract import Broker
from worker.core.topics import wanted
from worker.engine import worker
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 2
LARGE = "x" * 5_000


@pytest.fixture
async def stage(
    broker: Broker, another: Another, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """Its topics are still to be made; the worker believes that they take anything."""

    async def tasks(*_: object) -> int:
        return TASKS

    async def limit(*_: object) -> int:
        return 1_400_000

    monkeypatch.setattr(worker, "check_topics", tasks)
    monkeypatch.setattr(worker, "message_limit", limit)
    stage = Stage(broker, another, tmp_path)
    yield stage
    await stage.close()


async def narrow(stage: Stage, topic: str, size: int) -> None:
    """Make the topics, this one for messages of so many bytes at most."""
    topics = wanted(stage.names, TASKS, 1024 * 1024)
    await stage.broker.create([msgspec.structs.replace(topics[topic], max_message_bytes=size)])
    await stage.prepare(TASKS)


def large(n: int, of: int) -> tuple[bytes, bytes]:
    key, value = milestone(n, of)
    return key, encode(**json.loads(value), metadata={"text": LARGE})


async def rejection(stage: Stage, entity: str) -> dict[str, object]:
    """The only one that there is."""
    reader = stage.broker.reader()
    name = stage.names.rejected(entity)
    reader.assign({Partition(name, q): 0 for q in range(TASKS)})
    [message] = await reader.read(9, 20.0)
    await reader.close()
    found: dict[str, object] = json.loads(message.value or b"")
    return found


async def test_a_row_that_its_topic_refuses_is_rejected_and_others_are_not(stage: Stage) -> None:
    await narrow(stage, stage.names.accepted("milestones"), 1_500)
    with capture_logs() as logs:
        running = await stage.started()
        await stage.judged(await stage.send("users", user(1)))
        before = await stage.send("milestones", milestone(1, 1), partition=0)
        (refused,) = await stage.send("milestones", large(2, 1), partition=0)
        after = await stage.send("milestones", *(milestone(n, 1) for n in (2, 3)), partition=0)
        await stage.judged()
    assert stage.outcomes[refused] == ["rejected internal_error"]
    assert stage.verdicts([*before, *after]) == {"accepted": 3}
    said = [entry for entry in logs if entry["event"] == "record_refused"]
    assert [(entry["log_level"], entry["source"]) for entry in said] == [("error", refused)]
    assert (await rejection(stage, "milestones"))["record_base64"]
    await stage.until(lambda: not running.health.reasons(stage.clock.steady()), "it is ready")
    await stage.books_balance()


async def test_a_record_that_cannot_be_kept_is_rejected(stage: Stage) -> None:
    await narrow(stage, stage.names.parked, 1_500)
    await stage.started(grace=3_600_000, persist_after=0)
    small = await stage.send("milestones", milestone(1, 1), partition=0)
    (refused,) = await stage.send("milestones", large(2, 1), partition=0)
    await stage.judged([refused])
    assert stage.outcomes[refused] == ["rejected internal_error"]
    await stage.send("users", user(1))
    await stage.judged()
    assert stage.verdicts(small) == {"accepted": 1}
    await stage.books_balance()


async def test_a_rejection_that_is_refused_is_said_in_fewer_words(stage: Stage) -> None:
    await narrow(stage, stage.names.rejected("milestones"), 1_200)
    await stage.started()
    (refused,) = await stage.send("milestones", (b"x", b"{" + LARGE.encode()), partition=0)
    more = await stage.send("milestones", (b"x", b"{}"), partition=1)
    await stage.judged()
    assert stage.outcomes[refused] == ["rejected internal_error"]
    assert stage.verdicts(more) != {"none": 1}
    await stage.books_balance()


async def test_where_nothing_can_be_said_one_task_waits_and_it_is_told(stage: Stage) -> None:
    topic = stage.names.rejected("milestones")
    await narrow(stage, topic, 200)
    with capture_logs() as logs:
        running = await stage.started()
        await stage.send("milestones", (uuid(1).encode(), b"{}"), partition=0)
        await stage.until(lambda: bool(refused(logs)), "it is told")
        assert any(topic in line for line in running.health.reasons(stage.clock.steady()))
        await stage.judged(await stage.send("checkins", (b"x", b"{}"), partition=1))
    assert {entry["task"] for entry in refused(logs)} == {0}


async def test_a_progress_that_is_refused_is_told(stage: Stage) -> None:
    await narrow(stage, stage.names.progress, 90)
    with capture_logs() as logs:
        running = await stage.start()
        await stage.send("milestones", (uuid(1).encode(), b"{}"), partition=0)
        await stage.until(lambda: bool(refused(logs)), "it is told")
        reasons = running.health.reasons(stage.clock.steady())
    assert any(stage.names.progress in line for line in reasons)
    assert all(stage.names.progress in entry["error"] for entry in refused(logs))


def refused(logs: list[Any]) -> list[Any]:
    """The errors that say that a task cannot go on."""
    return [e for e in logs if e["event"] == "commit_refused" and e["log_level"] == "error"]
