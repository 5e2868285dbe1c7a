"""Records in over HTTP: what is sent, what is refused, and what a request that waits is told."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from schemas import ENTITIES
from tests.contract.broker_kit import DeleteTopic
from tests.contract.http_kit import RECORD_LIMIT, Served, inputs, ndjson, problem
from tests.contract.worker_kit import Row, Stage
from tests.unit.rows_kit import match, user, uuid
from worker.http import body as http_body
from worker.http import guard, send_report, verdicts
from worker.stream import Message

pytestmark = pytest.mark.timeout(200)

NDJSON = {"content-type": "application/x-ndjson"}
NOBODY = 900_000


def values(messages: list[Message]) -> list[bytes]:
    return sorted(message.value or b"" for message in messages)


def record(row: Row) -> bytes:
    return row[1] or b""


@pytest.mark.parametrize("form", ["object", "array", "ndjson", "lines as json", "gzip"])
async def test_each_form_of_a_body_is_sent_byte_for_byte(
    stage: Stage, http: Served, form: str
) -> None:
    rows = [user(n) for n in range(1 if form == "object" else 20)]
    lines = ndjson(rows)
    body, headers = {
        "object": (record(rows[0]), {"content-type": "application/json"}),
        "array": (b"[\n" + b",\n ".join(map(record, rows)) + b"]", {}),
        "ndjson": (lines, NDJSON),
        "lines as json": (lines, {"content-type": "application/x-www-form-urlencoded"}),
        "gzip": (gzip.compress(lines), NDJSON | {"content-encoding": "gzip"}),
    }[form]
    report = await http.send("users", body, headers=headers)
    assert report["sent"] == len(rows)
    messages = await inputs(stage)
    assert values(messages) == sorted(map(record, rows))
    assert {message.key for message in messages} == {key for key, _ in rows}
    by_coordinate = {f"{m.topic}/{m.partition}/{m.offset}": m.value for m in messages}
    sent = [by_coordinate[one["coordinate"]] for one in report["records"]]
    assert sent == list(map(record, rows)), "coordinates in the order of the records"


async def test_a_request_that_waits_gets_every_verdict(stage: Stage, http: Served) -> None:
    await stage.started(grace=0)
    good, warned, bad = user(1), user(2, email="U2@Example.com"), user(3)
    wrong = json.dumps(json.loads(record(bad)) | {"role": "mentor"}).encode()
    shouting = record(warned).replace(b"u2@example.com", b"U2@Example.com")
    body = b"\n".join([record(good), b"", shouting, wrong, b"{"])
    report = await http.send("users", body, wait="30s", headers=NDJSON)
    assert [report[name] for name in ("sent", "accepted", "rejected", "pending")] == [4, 2, 2, 0]
    first, second, third, fourth = report["records"]
    assert (first["line"], first["verdict"]) == (1, "accepted")
    assert (second["line"], second["warnings"]) == (3, ["email_lowercased"])
    assert [v["code"] for v in third["violations"]] == ["invalid_enum"]
    assert [v["code"] for v in fourth["violations"]] == ["malformed_record"]


async def test_violations_beyond_the_bytes_of_an_answer_are_left_out_and_counted(
    stage: Stage, http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "MOST_BYTES", 1_000)
    await stage.started(grace=0)
    lines = [record(user(1)), *[b"{"] * 20]
    report = await http.send("users", b"\n".join(lines), wait="30s", headers=NDJSON)
    assert [report[name] for name in ("accepted", "rejected")] == [1, 20]
    listed = [one for one in report["records"] if "violations" in one]
    assert 0 < len(listed) < 20
    assert sum(len(json.dumps(one["violations"])) for one in listed) <= 1_100
    assert report["violations_unlisted"] == 20 - len(listed)
    assert {one["verdict"] for one in report["records"]} == {"accepted", "rejected"}


async def test_a_record_that_waits_for_its_reference_is_pending(stage: Stage, http: Served) -> None:
    await stage.started(grace=300_000)
    content = record(match(1, 1, 2))
    answer = await http.client.post("/v1/records/matches?wait=500ms", content=content)
    assert answer.status_code == 202
    assert (answer.json()["pending"], answer.json()["records"][0]["verdict"]) == (1, "pending")
    users = ndjson([user(1), user(2)])
    assert (await http.send("users", users, wait="30s"))["accepted"] == 2


async def test_many_that_wait_at_once_each_get_their_own(stage: Stage, http: Served) -> None:
    await stage.started(grace=0)

    async def one(n: int) -> None:
        rows = [user(100 * n + i) for i in range(10)]
        report = await http.send("users", ndjson(rows), wait="60s", headers=NDJSON)
        assert (report["accepted"], report["pending"]) == (10, 0)

    await asyncio.gather(*(one(n) for n in range(12)))
    assert len(await inputs(stage)) == 120


async def test_a_deletion_is_sent_and_judged(stage: Stage, http: Served) -> None:
    await stage.started(grace=0)
    await http.send("users", record(user(1)), wait="30s")
    answer = await http.client.delete(f"/v1/records/users/{uuid(1).upper()}?wait=30s")
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    *_, deletion = await inputs(stage)
    assert (deletion.key, deletion.value) == (uuid(1).encode(), None)
    refused = await http.client.delete("/v1/records/users/17")
    assert problem(refused) == (400, "malformed_key")


async def test_a_record_too_large_is_named_and_the_others_are_sent(
    stage: Stage, http: Served
) -> None:
    limits = await stage.broker.topics([stage.names.input("users")])
    limit = limits[stage.names.input("users")].max_message_bytes
    large = b'{"id": "' + b"x" * limit + b'"}'
    body = b"\n".join([record(user(1)), large, record(user(2))])
    report = await http.send("users", body, headers=NDJSON)
    assert report["sent"] == 2
    assert report["refused"] == [{"line": 2, "size": len(large), "code": "record_too_large"}]
    assert len(await inputs(stage)) == 2


async def test_a_record_that_only_the_broker_finds_too_large_is_named_too(
    stage: Stage, http: Served
) -> None:
    """Kafka counts bytes of its own around a record; the embedded broker does not."""
    topic = stage.names.input("users")
    limit = (await stage.broker.topics([topic]))[topic].max_message_bytes
    large = b'{"x": "' + b"x" * (limit - 12) + b'"}'
    body = b"\n".join([record(user(1)), large, record(user(2))])
    report = await http.send("users", body, headers=NDJSON)
    assert [refused["line"] for refused in report["refused"]] in ([], [2])
    assert report["sent"] + len(report["refused"]) == 3
    assert len(await inputs(stage)) == report["sent"]


async def test_beyond_what_is_listed_records_are_counted(
    stage: Stage, http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_report, "MOST_LISTED", 3)
    await stage.started(grace=0)
    lines = [record(user(n)) for n in range(5)]
    answer = await http.client.post(
        "/v1/records/users?wait=30s", content=b"\n".join(lines), headers=NDJSON
    )
    report = answer.json()
    assert (answer.status_code, report["sent"], report["accepted"]) == (200, 5, 3)
    assert (len(report["records"]), report["records_unlisted"]) == (3, 2)
    broken = b"[" + b",\n".join(lines) + b"\n; broken"
    monkeypatch.setattr(http_body, "BATCH_RECORDS", 1)
    told = (await http.client.post("/v1/records/users", content=broken)).json()
    assert (told["sent"], told["last_line"]) == (5, 5)


async def test_probes_are_answered_under_any_load(
    http: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_REQUESTS", 0)
    assert (await http.client.get("/live")).status_code == 200
    answer = await http.client.get("/v1/exports")
    assert problem(answer) == (429, "too_many_requests")
    assert answer.headers["retry-after"] == "1"


async def test_a_broken_frame_says_where_and_how_much_was_sent(stage: Stage, http: Served) -> None:
    body = b"[" + b",\n".join(record(user(n)) for n in range(2_500)) + b"\n; broken"
    answer = await http.client.post("/v1/records/users", content=body)
    assert problem(answer) == (400, "malformed_body")
    told = answer.json()
    assert told["detail"].startswith("body:2501: ")
    assert told["sent"] == len(await inputs(stage)) == 2_000, "whole batches before the fault"
    assert told["last_line"] == 2_000


async def test_a_body_that_is_cut_off_has_sent_a_prefix(stage: Stage, http: Served) -> None:
    rows = [user(n) for n in range(5_000)]
    sent = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield ndjson(rows[:4_000])
        await sent.wait()
        raise OSError("the client dies")

    request = asyncio.create_task(
        http.client.post("/v1/records/users", content=half(), headers=NDJSON)
    )
    while len(await inputs(stage)) < 3_000:
        assert not request.done()
    sent.set()
    with pytest.raises(OSError, match="the client dies"):
        await request
    found = values(await inputs(stage))
    assert found == sorted(record(row) for row in rows[: len(found)])
    assert (await http.send("users", ndjson(rows[:1])))["sent"] == 1, "the next request is served"


@pytest.mark.parametrize(
    ("path", "content", "headers", "expected"),
    [
        ("/v1/records/userz", b"{}", {}, (404, "unknown_entity")),
        ("/v1/records/users?wait=soon", b"{}", {}, (400, "malformed_wait")),
        ("/v1/records/users?wait=3600", b"{}", {}, (400, "malformed_wait")),
        ("/v1/records/users", b"", {}, (400, "empty_body")),
        ("/v1/records/users", b"\n\n", NDJSON, (400, "empty_body")),
        ("/v1/records/users", b"id,email", {"content-type": "text/csv"}, (415, "unsupported_type")),
        ("/v1/records/users", b"{}", {"content-encoding": "br"}, (415, "unsupported_encoding")),
        ("/v1/records/users", b"\x1f\x8b no gzip", {}, (400, "malformed_body")),
        ("/v1/records/users", b"{}", {"origin": "http://evil.example"}, (403, "other_origin")),
        ("/v1/records/users", b"{}", {"sec-fetch-site": "cross-site"}, (403, "other_origin")),
        ("/v1/records/users", b"{}", {"host": "evil.example"}, (421, "not_this_machine")),
        ("/v1/records/users", b"{}", {"host": "a{b.evil.example"}, (421, "not_this_machine")),
        ("/v1/records/users", b"{}", {"host": "127.0.0.1:999999"}, (421, "not_this_machine")),
        ("/v1/records/users?wiat=10s", b"{}", {}, (400, "unknown_parameter")),
        ("/nowhere", b"{}", {}, (404, "not_found")),
        ("/v1/records/users/1", b"{}", {}, (405, "wrong_method")),
    ],
)
async def test_what_cannot_be_done_is_a_problem(
    stage: Stage,
    http: Served,
    path: str,
    content: bytes,
    headers: dict[str, str],
    expected: tuple[int, str],
) -> None:
    assert problem(await http.client.post(path, content=content, headers=headers)) == expected
    assert await inputs(stage) == []


async def test_a_check_sends_nothing(stage: Stage, http: Served) -> None:
    body = b"\n".join([record(user(1)), b'{"id": 1}', b'{"x": "' + b"y" * RECORD_LIMIT + b'"}'])
    answer = await http.client.post("/v1/check/users", content=body, headers=NDJSON)
    report = answer.json()
    assert (answer.status_code, report["valid"], report["rejected"]) == (200, 1, 2)
    assert [one["line"] for one in report["records"]] == [2, 3]
    assert [v["code"] for v in report["records"][1]["violations"]] == ["malformed_record"]
    assert report["not_checked"] == ["references", "unique addresses"]
    assert await inputs(stage) == []


async def test_an_array_of_any_entity_is_sent(stage: Stage, http: Served) -> None:
    for entity in ENTITIES:
        report = await http.send(entity, [{"a": 1}, 2, "three"])
        assert report["sent"] == len(await inputs(stage, entity)) == 3


@pytest.mark.parametrize("query", ["", "?wait=5s"])
async def test_a_missing_topic_is_said(
    stage: Stage, http: Served, remove: DeleteTopic, query: str
) -> None:
    await remove(stage.names.input("users"))
    answer = await http.client.post(f"/v1/records/users{query}", content=b"{}")
    assert problem(answer) == (503, "missing_topic")
    assert "buddy topics create" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "5"
