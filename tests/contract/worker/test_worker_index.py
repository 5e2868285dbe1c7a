"""What a worker makes of an index that is damaged under it, and of rows that are not its own."""

from __future__ import annotations

import json

import lmdb
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Expire
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import match, user
from worker.brokers.contract import Broker
from worker.core.outbox import SOURCE_HEADER
from worker.stream import Partition, ProducerRecord

pytestmark = pytest.mark.timeout(400)

TASKS = 2


async def test_an_index_that_is_damaged_under_a_worker_is_rebuilt_in_one_line(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await stage.started()
    await stage.send("users", *(user(n) for n in range(1, 5)))
    await stage.judged()
    index = worker.worker._index

    def damaged(*_: object) -> bytes:
        raise lmdb.CorruptedError("mdb_get: MDB_CORRUPTED")

    with capture_logs() as logs:
        monkeypatch.setattr(index, "_get", damaged)  # until it is opened again
        sent = await stage.send("matches", *(match(10 + n, 1, 2) for n in range(3)))
        await stage.judged()
    assert stage.verdicts(sent) == {"accepted": 3}
    rebuilt = [entry for entry in logs if entry["event"] == "state_rebuild"]
    assert len(rebuilt) == 1
    assert "damaged (mdb_get: MDB_CORRUPTED" in rebuilt[0]["reason"]
    assert index.counts()["users"] == 4


async def test_a_foreign_row_moves_no_address(stage: Stage, broker: Broker) -> None:
    worker = await stage.started()
    key, row = user(1, email="one@x.org")
    await stage.send("users", (key, row))
    await stage.judged()
    moved = json.dumps(json.loads(row) | {"email": "other@x.org"}).encode()
    assert b'": "' in moved, "not in canonical form"
    topic = stage.names.accepted("users")
    header = ((SOURCE_HEADER, b"elsewhere/0/0"),)
    foreign = [
        ProducerRecord(topic, key, value, header) for value in (moved, b'{"email":"a@x.org"}')
    ]
    await broker.publish(foreign)
    await stage.until(
        lambda: worker.counted("buddy_foreign_rows_total", reader="index") == 2, "both are refused"
    )
    taken = await stage.send("users", user(2, email="one@x.org"))
    free = await stage.send("users", user(3, email="other@x.org"))
    await stage.judged()
    assert stage.verdicts(taken) == {"rejected duplicate_email": 1}
    assert stage.verdicts(free) == {"accepted": 1}


async def test_rows_that_were_removed_before_a_new_index_read_them_are_told(
    stage: Stage, broker: Broker, empty: Expire
) -> None:
    place = Partition(stage.names.accepted("users"), 1)
    await broker.publish([ProducerRecord(place.topic, *user(n), partition=1) for n in range(3)])
    gone = (await broker.spans([place]))[place].end
    await empty(place)
    with capture_logs() as logs:
        worker = await stage.started()
        await stage.until(
            lambda: worker.counted("buddy_accepted_expired_messages_total") == gone, "it is counted"
        )
        await stage.until(
            lambda: any(
                owned.task.books.incidents["accepted_expired"] == gone
                for owned in worker.tasks.values()
            ),
            "the books have it",
        )
    told = [entry for entry in logs if entry["event"] == "accepted_expired"]
    assert [(e["topic"], e["partition"], e["count"]) for e in told] == [(*place, gone)]
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert f"{gone} offsets of {place.topic}/{place.number} were removed before" in reasons
