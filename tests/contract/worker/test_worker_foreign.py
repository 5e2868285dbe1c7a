"""Records with what Kafka takes and the program's own clients never send: each gets its verdict."""

from __future__ import annotations

import json

import pytest

from tests.contract.foreign_kit import send_foreign
from tests.contract.helpers import all_of, configure, take
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import match, milestone, user
from worker.brokers.contract import Broker
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 2
kafka_only = pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])


@kafka_only
async def test_a_header_whose_name_is_not_utf8(stage: Stage, kafka_address: str) -> None:
    running = await stage.started()
    users = Partition(stage.names.input("users"), 0)
    good = await stage.send("users", user(1), user(2))
    odd = await send_foreign(
        kafka_address, users, user(3), (b"k", b"{}"), user(4), name=b"trace-\xff\xfe\xe9"
    )
    stage.outcomes |= {place: [] for place in odd}
    good += await stage.send("users", user(5))
    good += await stage.send("milestones", milestone(1, 3))
    await stage.judged()
    (verdict,) = stage.verdicts([odd[1]])
    assert stage.verdicts([*good, odd[0], odd[2]]) == {"accepted": 6}
    assert verdict.startswith("rejected ")
    (rejection,) = await all_of(stage.broker, stage.names.rejected("users"), 1, TASKS)
    assert json.loads(rejection.value or b"")["headers"] == [[r"trace-\xff\xfe\xe9", "dg=="]]
    assert running.health.reasons(stage.clock.steady()) == []
    await stage.books_balance()


@kafka_only
@pytest.mark.parametrize("level", [True, False])
async def test_such_a_record_is_read_in_every_topic(
    broker: Broker, kafka_address: str, stage: Stage, *, level: bool
) -> None:
    """Also where messages of open transactions are read, and from its own offset on."""
    names = stage.names
    for topic in (
        names.export_requests,
        names.rejected("users"),
        names.exports,
        names.accepted("users"),
    ):
        place = Partition(topic, 0)
        await send_foreign(kafka_address, place, (b"a", b"1"), name=b"good")
        await send_foreign(kafka_address, place, (b"b", b"2"), (b"c", b"3"), name=b"\xff")
        for first in (0, 1, 2):
            reader = broker.reader() if level else broker.reader(uncommitted=True)
            reader.assign({place: first})
            found = await take(reader, 3 - first)
            shown = {0: "good", 1: r"\xff", 2: r"\xff"}
            assert [(m.offset, m.headers) for m in found] == [
                (offset, ((shown[offset], b"v"),)) for offset in range(first, 3)
            ]
            await reader.close()


@kafka_only
async def test_no_record_waits_for_the_time_that_its_producer_gave(
    stage: Stage, kafka_address: str
) -> None:
    """Somebody changes the inputs to CreateTime: any number is a time then."""
    running = await stage.started()
    settings = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str((1 << 63) - 1),
        "retention.ms": "-1",
    }
    for entity in ("users", "matches"):
        await configure(kafka_address, stage.names.input(entity), **settings)
    times = [-1, 0, 1, 253_402_300_800_000, 1 << 62, (1 << 63) - 1]
    users, matches, bad = [], [], []
    for n, time in enumerate(times):
        place = Partition(stage.names.input("users"), n % TASKS)
        users += await send_foreign(kafka_address, place, user(n), timestamp=time)
        bad += await send_foreign(kafka_address, place, (b"k", b"{}"), timestamp=time)
    for n, time in enumerate(times):  # once all users are there: the grace period is 0 here
        place = Partition(stage.names.input("matches"), n % TASKS)
        row = match(100 + n, n, (n + 1) % len(times))
        matches += await send_foreign(kafka_address, place, row, timestamp=time)
    stage.outcomes |= {place: [] for place in [*users, *matches, *bad]}
    await stage.judged()
    assert stage.verdicts([*users, *matches]) == {"accepted": 2 * len(times)}
    await stage.send("users", user(50))
    await stage.judged()
    assert running.health.reasons(stage.clock.steady()) == []
    await stage.books_balance()
