"""Requests with an `Idempotency-Key`, on every broker: cut off, repeated, elsewhere, at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another, DeleteTopic, unique
from tests.contract.http_kit import RECORD_LIMIT, Served, inputs, ndjson, problem, served
from tests.contract.worker_kit import Row, Stage
from tests.unit.rows_kit import user
from worker.brokers.contract import Committer
from worker.core.topics import wanted
from worker.errors import BrokerUnavailable
from worker.http import body as http_body
from worker.http import following, keyed, receipts, send_report
from worker.http.receipts import StoredReceipt
from worker.stream import Partition

pytestmark = pytest.mark.timeout(200)

KEYED = {"content-type": "application/x-ndjson", "idempotency-key": "upload of 2026-11-29"}
ROWS = [user(n) for n in range(2_500)]


class Cut(Exception):
    """The client dies."""


async def cut_off(stage: Stage, http: Served, rows: Sequence[Row], after: int) -> None:
    """A request that ends in the middle of its body, once so many records are in the input."""
    enough = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield ndjson(rows)
        await enough.wait()
        raise Cut

    request = asyncio.create_task(
        http.client.post("/v1/records/users", content=half(), headers=KEYED)
    )
    while len(await inputs(stage)) < after:
        assert not request.done()
    enough.set()
    with pytest.raises(Cut):
        await request


async def sent_once(stage: Stage, rows: Sequence[Row]) -> None:
    """Whether the input has each of these records once, and no others."""
    found = sorted(message.value or b"" for message in await inputs(stage))
    assert found == sorted(value or b"" for _, value in rows)


async def listed_well(stage: Stage, report: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Whether the report lists these records by their coordinates, in their order."""
    there = {f"{m.topic}/{m.partition}/{m.offset}": m.value for m in await inputs(stage)}
    assert [there[one["coordinate"]] for one in report["records"]] == [value for _, value in rows]
    assert [one["line"] for one in report["records"]] == list(range(1, len(rows) + 1))


async def test_a_repeat_sends_the_rest_and_lists_everything(stage: Stage, http: Served) -> None:
    await cut_off(stage, http, ROWS[:2_400], after=2_000)
    report = await http.send("users", ndjson(ROWS), headers=KEYED)
    assert (report["sent"], report["repeated"]) == (2_500, 2_000)
    await sent_once(stage, ROWS)
    await listed_well(stage, report, ROWS)
    again = await http.send("users", ndjson(ROWS), headers=KEYED)
    assert (again["sent"], again["repeated"]) == (2_500, 2_500)
    assert again["records"] == report["records"]
    await sent_once(stage, ROWS)


async def test_a_repeat_at_another_process_gets_the_verdicts_of_all(
    stage: Stage, http: Served, another: Another
) -> None:
    await stage.started(grace=0)
    wrong = json.dumps(json.loads(ROWS[7][1] or b"") | {"role": "mentor"}).encode()
    rows = [*ROWS[:7], (ROWS[7][0], wrong), *ROWS[8:]]
    await cut_off(stage, http, rows[:1_400], after=1_000)
    first = await http.send("users", ndjson(rows[:1_000]), headers=KEYED, wait="60s")
    assert (first["accepted"], first["rejected"], first["repeated"]) == (999, 1, 1_000)
    async with served(await another(), stage.names) as elsewhere:
        report = await elsewhere.send("users", ndjson(rows), headers=KEYED, wait="60s")
    counts = [report[name] for name in ("sent", "repeated", "accepted", "rejected", "pending")]
    assert counts == [2_500, 1_000, 2_499, 1, 0]
    assert [v["code"] for v in report["records"][7]["violations"]] == ["invalid_enum"]
    await sent_once(stage, rows)


async def test_a_repeat_stops_the_request_that_is_in_progress(
    stage: Stage, http: Served, another: Another
) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield ndjson(ROWS[:1_100])
        await more.wait()
        yield ndjson(ROWS[1_100:])

    first = asyncio.create_task(
        http.client.post("/v1/records/users", content=slow(), headers=KEYED)
    )
    while len(await inputs(stage)) < 1_000:
        assert not first.done()
    async with served(await another(), stage.names) as elsewhere:
        report = await elsewhere.send("users", ndjson(ROWS), headers=KEYED)
    assert report["repeated"] == 1_000
    more.set()
    answer = await first
    assert problem(answer) == (409, "taken_over")
    assert answer.json()["sent"] == 1_000
    await sent_once(stage, ROWS)


async def test_of_repeats_at_once_each_record_is_sent_once(
    stage: Stage, http: Served, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_body, "BATCH_RECORDS", 100)

    async def one(at: Served) -> int:
        answer = await at.client.post("/v1/records/users", content=ndjson(ROWS), headers=KEYED)
        assert answer.status_code == 202 or problem(answer) == (409, "taken_over")
        return answer.status_code

    async with served(await another(), stage.names) as elsewhere:
        codes = await asyncio.gather(*(one(at) for at in (http, elsewhere) * 3))
    assert 202 in codes
    await sent_once(stage, ROWS)


async def test_another_body_is_refused(stage: Stage, http: Served) -> None:
    await http.send("users", ndjson(ROWS[:5]), headers=KEYED)
    other = [*ROWS[:3], *ROWS[4:9]]
    for rows in (other, ROWS[:4]):
        answer = await http.client.post("/v1/records/users", content=ndjson(rows), headers=KEYED)
        assert problem(answer) == (422, "key_reused")
        assert answer.json()["sent"] == 5
    await sent_once(stage, ROWS[:5])


async def test_keys_of_other_entities_and_other_keys_are_apart(stage: Stage, http: Served) -> None:
    for entity in ("users", "matches"):
        assert (await http.send(entity, ndjson(ROWS[:2]), headers=KEYED))["repeated"] == 0
    other = KEYED | {"idempotency-key": "another"}
    assert (await http.send("users", ndjson(ROWS[:2]), headers=other))["repeated"] == 0
    assert len(await inputs(stage)) == 4
    without = await http.send("users", ndjson(ROWS[:2]))
    assert "repeated" not in without


async def test_refused_records_are_refused_again_and_not_counted_twice(
    stage: Stage, http: Served
) -> None:
    """A record near the limit is refused by the broker alone, for its headers."""
    topic = stage.names.input("users")
    limit = (await stage.broker.topics([topic]))[topic].max_message_bytes
    near = b'{"x": "' + b"x" * (limit - 12) + b'"}'
    far = b'{"x": "' + b"x" * limit + b'"}'
    lines = [ROWS[0][1] or b"", near, far, near, ROWS[1][1] or b""]
    body = b"\n".join(lines)
    first = await http.send("users", body, headers=KEYED)
    assert (first["sent"], [one["line"] for one in first["refused"]]) == (2, [2, 3, 4])
    again = await http.send("users", body + b"\n" + (ROWS[2][1] or b""), headers=KEYED)
    assert (again["sent"], again["repeated"], again["refused"]) == (3, 2, first["refused"])
    assert [one["line"] for one in again["records"]] == [1, 5, 6]
    assert [one["coordinate"] for one in again["records"]][:2] == [
        one["coordinate"] for one in first["records"]
    ]
    await sent_once(stage, ROWS[:3])


async def test_beyond_what_is_listed_a_repeat_counts(
    stage: Stage, http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_body, "BATCH_RECORDS", 100)
    for module in (send_report, keyed):
        monkeypatch.setattr(module, "MOST_LISTED", 250)
    first = await http.send("users", ndjson(ROWS[:700]), headers=KEYED)
    again = await http.send("users", ndjson(ROWS[:900]), headers=KEYED)
    assert (again["sent"], again["repeated"]) == (900, 700)
    assert (len(again["records"]), again["records_unlisted"]) == (250, 650)
    assert again["records"] == first["records"]
    await sent_once(stage, ROWS[:900])


async def test_the_key_is_no_parameter_of_the_query(http: Served) -> None:
    answer = await http.client.post("/v1/records/users?Idempotency-Key=a", content=b"{}")
    assert problem(answer) == (400, "unknown_parameter")


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "ü"])
async def test_a_key_has_a_form(stage: Stage, http: Served, key: str) -> None:
    headers = httpx.Headers(KEYED | {"idempotency-key": key}, encoding="utf-8")
    answer = await http.client.post("/v1/records/users", content=b"{}", headers=headers)
    assert problem(answer) == (400, "malformed_idempotency_key")
    assert await inputs(stage) == []


async def test_receipts_name_neither_the_key_nor_a_record(stage: Stage, http: Served) -> None:
    await http.send("users", ndjson(ROWS[:2]), headers=KEYED)
    reader = stage.broker.reader()
    reader.assign({Partition(stage.names.receipts, 0): 0})
    [receipt] = await reader.read(10, 20)
    assert b"upload" not in (receipt.key or b"") + (receipt.value or b"")
    fields = {"read", "sent", "digest", "identity", "ends", "topics"}
    assert json.loads(receipt.value or b"").keys() == fields


class _Unsure:
    """A committer whose second commit takes place, but whose answer is lost."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._left = 2

    async def commit(self, *arguments: Any) -> list[tuple[int, int]]:
        written = await self._committer.commit(*arguments)
        self._left -= 1
        if not self._left:
            raise BrokerUnavailable("the outcome is unknown")
        return written

    async def close(self) -> None:
        await self._committer.close()


async def test_a_batch_whose_outcome_is_unknown_is_not_sent_again(
    stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await another()
    start = broker.committer

    async def unsure(*names: str) -> _Unsure:
        return _Unsure(await start(*names))

    async with served(broker, stage.names) as http:
        with monkeypatch.context() as patch:
            patch.setattr(broker, "committer", unsure)
            answer = await http.client.post(
                "/v1/records/users", content=ndjson(ROWS), headers=KEYED
            )
        assert problem(answer) == (503, "broker_unavailable")
        assert answer.json()["sent"] == 1_000, "what is confirmed"
        report = await http.send("users", ndjson(ROWS), headers=KEYED)
    assert (report["sent"], report["repeated"]) == (2_500, 2_000)
    await sent_once(stage, ROWS)
    await listed_well(stage, report, ROWS)


async def test_what_keeps_requests_with_a_key_alone_is_told_until_one_passes(
    stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await another()
    denied = BrokerUnavailable("cannot start the writer of the key: no right")
    async with served(broker, stage.names) as http:
        with monkeypatch.context() as patch:
            patch.setattr(broker, "committer", AsyncMock(side_effect=denied))
            answer = await http.client.post("/v1/records/users", content=b"{}", headers=KEYED)
            assert problem(answer) == (503, "broker_unavailable")
        await http.send("users", b"{}")
        assert http.watch._recent_failure() == str(denied)
        await http.send("users", b"{}", headers=KEYED)
        assert http.watch._recent_failure() is None


async def test_receipts_that_cannot_be_read_to_the_end_send_nothing(
    stage: Stage, http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's open transaction may hide a receipt: sending without it could send twice."""
    monkeypatch.setattr(keyed, "READ_SECONDS", 0.0)
    answer = await http.client.post("/v1/records/users", content=ndjson(ROWS), headers=KEYED)
    assert problem(answer) == (503, "receipts_behind")
    assert answer.headers["retry-after"] == "5"
    assert await inputs(stage) == []


async def _none(_receipts: Any, _key: str) -> list[StoredReceipt]:
    return []


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_a_receipt_behind_an_open_transaction_is_waited_for(
    stage: Stage, http: Served, kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = AIOKafkaProducer(bootstrap_servers=kafka_address, transactional_id=unique("other"))
    await stranger.start()
    try:
        await stranger.begin_transaction()
        await stranger.send_and_wait(stage.names.receipts, b"another's", partition=0)
        with monkeypatch.context() as patch:
            patch.setattr(receipts.Receipts, "of", _none)  # this one does not wait
            await http.send("users", ndjson(ROWS[:5]), headers=KEYED)
        with monkeypatch.context() as patch:
            patch.setattr(keyed, "READ_SECONDS", 2.0)
            answer = await http.client.post(
                "/v1/records/users", content=ndjson(ROWS), headers=KEYED
            )
        assert problem(answer) == (503, "receipts_behind")
        await stranger.abort_transaction()
    finally:
        await stranger.stop()
    assert (await http.send("users", ndjson(ROWS), headers=KEYED))["repeated"] == 5
    await sent_once(stage, ROWS)


async def test_without_their_topic_keys_alone_are_refused(
    stage: Stage, http: Served, remove: DeleteTopic
) -> None:
    await remove(stage.names.receipts)
    answer = await http.client.post("/v1/records/users", content=ndjson(ROWS), headers=KEYED)
    assert problem(answer) == (503, "missing_topic")
    assert await inputs(stage) == []
    assert (await http.send("users", ndjson(ROWS[:1])))["sent"] == 1


@pytest.mark.parametrize("more", [False, True], ids=["before", "after others have sent"])
async def test_receipts_that_are_created_anew_are_told_and_those_after_them_count(
    stage: Stage,
    http: Served,
    remove: DeleteTopic,
    monkeypatch: pytest.MonkeyPatch,
    more: bool,
) -> None:
    monkeypatch.setattr(following, "_IDENTITY_MS", 200)
    topic = stage.names.receipts
    with capture_logs() as logs:
        for key in "abc":
            await keyed_send(http, key)
        await remove(topic)
        await stage.broker.create([wanted(stage.names, 1, RECORD_LIMIT)[topic]])
        said = f"offsets of {topic}/0 are lost"
        await stage.until(lambda: said in (http.watch.hindrance() or ""), "it is told")
        if more:
            await keyed_send(http, "d")
        assert [await keyed_send(http, key) for key in "aabb"] == [0, 1, 0, 1]
    assert [e["topic"] for e in logs if e["event"] == "receipts_lost"] == [topic]


async def keyed_send(http: Served, key: str) -> int:
    """Send a record with this key. How many were there already."""
    headers = KEYED | {"idempotency-key": key}
    found: int = (await http.send("users", ndjson(ROWS[:1]), headers=headers))["repeated"]
    return found


async def test_the_keys_that_sent_longest_ago_are_forgotten(
    stage: Stage, http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "MOST_KEYS", 2)
    assert [await keyed_send(http, key) for key in "abcbca"] == [0, 0, 0, 1, 1, 0]
