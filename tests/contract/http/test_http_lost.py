"""An input that is created anew while somebody waits for verdicts of records in it."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.contract.broker_kit import DeleteTopic
from tests.contract.helpers import eventually
from tests.contract.http_kit import Served, ndjson
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import user
from worker.cli.outcomes import Outcomes
from worker.core.outbox import SOURCE_HEADER
from worker.core.topics import wanted
from worker.errors import TopicRecreated
from worker.stream import Partition, ProducerRecord

pytestmark = pytest.mark.timeout(200)

LIMIT = 1024 * 1024


async def coordinates(stage: Stage) -> list[str]:
    """Those of all users that were sent."""
    topic = stage.names.input("users")
    spans = await stage.broker.spans(Partition(topic, number) for number in range(stage.tasks))
    return [
        f"{topic}/{place.number}/{offset}"
        for place, span in spans.items()
        for offset in range(span.start, span.end)
    ]


async def create_anew(stage: Stage, remove: DeleteTopic) -> None:
    topic = stage.names.input("users")
    await remove(topic)
    await stage.broker.create([wanted(stage.names, stage.tasks, LIMIT)[topic]])


async def accept(stage: Stage, coordinate: str) -> None:
    """What a worker writes for the record that has this coordinate now."""
    source = (SOURCE_HEADER, coordinate.encode())
    row = ProducerRecord(stage.names.accepted("users"), b"k", b"{}", headers=(source,))
    await stage.broker.publish([row])


async def test_a_request_that_waits_is_told_no_verdict_of_another_record(
    stage: Stage, http: Served, remove: DeleteTopic
) -> None:
    _, content = user(1)
    request = asyncio.create_task(
        http.client.post("/v1/records/users?wait=60s", content=content or b"")
    )
    [coordinate] = await eventually(lambda: coordinates(stage), bool)
    await create_anew(stage, remove)
    await accept(stage, coordinate)
    answer = await request
    report = answer.json()
    assert answer.status_code == 202
    assert [one["verdict"] for one in report["records"]] == ["lost"]
    assert [report[name] for name in ("accepted", "pending", "lost")] == [0, 0, 1]


async def test_a_verdict_in_a_topic_that_was_created_anew_is_found_by_a_repeat(
    stage: Stage, http: Served, remove: DeleteTopic
) -> None:
    for earlier in range(3):
        await accept(stage, f"of no record/0/{earlier}")
    _, content = user(1)
    headers = {"idempotency-key": "a"}
    await http.send("users", content or b"", headers=headers)
    # Kafka shows it a moment after the commit, and the end of its transaction as well.
    coordinate, *_ = await eventually(lambda: coordinates(stage), bool)
    topic = stage.names.accepted("users")
    await remove(topic)
    await stage.broker.create([wanted(stage.names, stage.tasks, LIMIT)[topic]])
    await accept(stage, coordinate)
    report = await http.send("users", content or b"", headers=headers, wait="60s")
    assert (report["repeated"], report["accepted"], report["pending"]) == (1, 1, 0)


async def reject(stage: Stage, coordinate: str, code: str) -> None:
    """As `accept`: a rejection for this reason, in the record's partition."""
    source = (SOURCE_HEADER, coordinate.encode())
    value = json.dumps({"violations": [{"code": code}]}).encode()
    number = int(coordinate.split("/")[1])
    topic = stage.names.rejected("users")
    await stage.broker.publish(
        [ProducerRecord(topic, b"k", value, headers=(source,), partition=number)]
    )


async def test_of_records_that_were_judged_again_a_repeat_says_what_holds(
    stage: Stage, http: Served
) -> None:
    """Their first verdicts are still in the topics, which are read in any order."""
    rows = [user(n) for n in range(8)]
    headers = {"content-type": "application/x-ndjson", "idempotency-key": "a"}
    first = await http.send("users", ndjson(rows), headers=headers)
    places = [one["coordinate"] for one in first["records"]]
    for place in places:
        await reject(stage, place, "orphaned_user_id")
        await reject(stage, place, "duplicate_email")
    for place in places[::2]:
        await accept(stage, place)
    for _ in range(2):
        report = await http.send("users", ndjson(rows), headers=headers, wait="60s")
        said = {one["coordinate"]: one for one in report["records"]}
        assert [said[place]["verdict"] for place in places] == ["accepted", "rejected"] * 4
        codes = {said[place]["violations"][0]["code"] for place in places[1::2]}
        assert codes == {"duplicate_email"}, "the last rejection counts"


@pytest.mark.parametrize("is_made_anew", [True, False])
async def test_a_record_whose_input_is_gone_is_not_pending(
    stage: Stage, http: Served, remove: DeleteTopic, is_made_anew: bool
) -> None:
    request = asyncio.create_task(
        http.client.post("/v1/records/users?wait=3s", content=json.dumps({"id": 1}))
    )
    await eventually(lambda: coordinates(stage), bool)
    await (create_anew(stage, remove) if is_made_anew else remove(stage.names.input("users")))
    report = (await request).json()
    assert [one["verdict"] for one in report["records"]] == ["lost"]


async def test_whoever_sends_and_waits_counts_no_verdict_of_another_record(
    stage: Stage, remove: DeleteTopic
) -> None:
    outcomes = Outcomes(stage.broker, stage.names)
    await outcomes.open()
    sent = [ProducerRecord(stage.names.input("users"), *user(1))]
    outcomes.add_sent(sent, await stage.broker.publish(sent))
    [coordinate] = await coordinates(stage)
    await create_anew(stage, remove)
    await accept(stage, coordinate)
    with pytest.raises(TopicRecreated, match="send them again"):
        await outcomes.wait(30, lambda _judged: None)
    assert outcomes.judged == 0
    await outcomes.close()


@pytest.mark.parametrize("is_made_anew", [True, False])
@pytest.mark.parametrize("of", ["accepted.users", "rejected.matches"])
async def test_whoever_waits_is_told_how_much_was_sent_if_a_topic_of_verdicts_is_gone(
    stage: Stage, remove: DeleteTopic, of: str, is_made_anew: bool
) -> None:
    outcomes = Outcomes(stage.broker, stage.names)
    await outcomes.open()
    sent = [ProducerRecord(stage.names.input("users"), *user(number)) for number in (1, 2)]
    outcomes.add_sent(sent, await stage.broker.publish(sent))
    topic = f"{stage.names.prefix}.{of}"
    await remove(topic)
    if is_made_anew:
        await stage.broker.create([wanted(stage.names, stage.tasks, LIMIT)[topic]])
    expected = f"topic {topic} was deleted or created anew after 2 records were sent: 0 had"
    with pytest.raises(TopicRecreated, match=expected):
        await outcomes.wait(30, lambda _judged: None)
    await outcomes.close()
