"""Replays over HTTP: what is sent again, by whom, once, and one replay at a time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another
from tests.contract.desk_kit import Desk
from tests.contract.http_kit import Served, kept, messages, problem, served
from tests.unit.rows_kit import uuid
from worker.brokers.contract import Broker
from worker.core.violations import Code
from worker.desk.audit import ReplayAudit, read_audit
from worker.errors import BrokerUnavailable, NobodyWorks
from worker.http.replays import LARGEST_BODY

pytestmark = pytest.mark.timeout(200)

ROLE = {"code": "invalid_enum"}


@pytest.fixture
def http(beside_a_desk: Served) -> Served:
    return beside_a_desk


async def replay(http: Served, **body: Any) -> Any:
    answer = await http.client.post("/v1/replays", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def audits(desk: Desk) -> list[ReplayAudit]:
    found = map(read_audit, await messages(desk.broker, desk.names.replays, 1))
    return [audit for audit in found if audit is not None]


async def fill(desk: Desk, count: int = 3) -> None:
    await desk.publish(
        *(
            desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role", id=uuid(n))
            for n in range(count)
        ),
        desk.rejection("users", uuid(99), Code.WRONG_TYPE, "email"),
    )


async def test_chosen_records_are_sent_once(desk: Desk, http: Served) -> None:
    await fill(desk)
    dry = await replay(http, **ROLE, dry_run=True)
    assert (dry["sent"], dry["would_send"], len(dry["examples"])) == (0, 3, 3)
    assert await messages(desk.broker, desk.names.input("users"), 2) == []
    with capture_logs() as logs:
        report = await replay(http, **ROLE)
    assert (report["sent"], report["skipped"], report["complete"]) == (3, {}, True)
    (line,) = [line for line in logs if line["event"] == "records_replayed"]
    assert (line["caller"], line["count"], line["replay"]) == ("anyone", 3, report["replay"])
    sent = await messages(desk.broker, desk.names.input("users"), 2)
    assert sorted(json.loads(m.value or b"")["id"] for m in sent) == [uuid(n) for n in range(3)]
    told = await audits(desk)
    assert {audit.by for audit in told} == {"anyone"}
    assert {audit.replay for audit in told} == {report["replay"]}
    # No worker runs, so nothing that was sent gets a verdict.
    again = await replay(http, **ROLE, at_once=True)
    assert (again["sent"], again["skipped"]) == (0, {"sent again before": 3})
    listed = (await http.client.get("/v1/rejections")).json()["rejections"]
    assert [one["violations"] for one in listed] == [[["wrong_type", "email"]]]


async def test_coordinates_choose(desk: Desk, http: Served) -> None:
    await fill(desk)
    report = await replay(http, coordinates=["in.users/0/2"])
    assert report["sent"] == 1
    assert [audit.key for audit in await audits(desk)] == [uuid(1)]
    nowhere = {"coordinates": ["in.users/1/77"], "at_once": True}
    answer = await http.client.post("/v1/replays", json=nowhere)
    assert problem(answer) == (404, "no_rejection")
    assert answer.json()["sent"] == 0


async def test_a_newer_row_is_not_replaced_unless_forced(desk: Desk, http: Served) -> None:
    await fill(desk, 2)
    await desk.publish(desk.row("users", uuid(1)))
    first = await replay(http, **ROLE, dry_run=True)
    assert (first["would_send"], first["skipped"]) == (1, {"accepted or deleted since": 1})
    forced = await replay(http, **ROLE, force=True)
    assert forced["sent"] == 2
    assert sorted(audit.forced for audit in await audits(desk)) == [False, True]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", {}, (400, "malformed_body")),
        (b"[]", {}, (400, "malformed_body")),
        (b'{"cod": "x"}', {}, (400, "malformed_body")),
        (b'{"max_replays": 0, "since": "2h"}', {}, (400, "malformed_body")),
        (b'{"coordinates": ["in.users"]}', {}, (400, "malformed_parameter")),
        (b'{"coordinates": ["in.users/0/1"], "code": "x"}', {}, (400, "malformed_parameter")),
        (b'{"code": "x"}', {}, (400, "malformed_parameter")),
        (b'{"key": "a"}', {}, (400, "malformed_parameter")),
        (b'{"since": "2h", "partition": -1}', {}, (400, "malformed_parameter")),
        (b"{}", {}, (400, "nothing_chosen")),
        (b'{"dry_run": true}', {}, (400, "nothing_chosen")),
        (b" " * (LARGEST_BODY + 1), {}, (413, "body_too_large")),
        (b"{}", {"content-type": "text/plain"}, (415, "unsupported_type")),
        (b"{}", {"content-encoding": "gzip"}, (415, "unsupported_type")),
    ],
)
async def test_what_cannot_be_sent_is_a_problem(
    http: Served, body: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    answer = await http.client.post("/v1/replays", content=body, headers=headers)
    assert problem(answer) == expected


async def test_one_replay_runs_at_a_time(desk: Desk, another: Another) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def held(_broker: Broker, _tasks: int, _patience: float) -> None:
        began.set()
        await go_on.wait()

    await fill(desk)
    broker = await another()
    async with (
        kept(broker, desk.names, desk.directory),
        served(broker, desk.names, desk=desk.directory, judged=held) as http,
    ):
        first = asyncio.create_task(replay(http, **ROLE))
        await began.wait()
        second = await http.client.post("/v1/replays", json=ROLE)
        assert problem(second) == (409, "replay_running")
        go_on.set()
        assert (await first)["sent"] == 3
        assert (await replay(http, **ROLE))["sent"] == 0


async def test_what_is_not_judged_in_time_is_said(desk: Desk, another: Another) -> None:
    async def never(_broker: Broker, _tasks: int, _patience: float) -> None:
        raise NobodyWorks("nobody works")

    async with served(await another(), desk.names, desk=desk.directory, judged=never) as http:
        answer = await http.client.post("/v1/replays", json=ROLE)
        assert problem(answer) == (503, "not_judged")
        assert "at_once" in answer.json()["detail"]


async def test_what_the_broker_does_not_allow_is_told_until_a_replay_succeeds(
    desk: Desk, another: Another
) -> None:
    denied = [BrokerUnavailable("cannot read internal.progress: no right")]

    async def judged(_broker: Broker, _tasks: int, _patience: float) -> None:
        if denied:
            raise denied.pop()

    broker = await another()
    async with (
        kept(broker, desk.names, desk.directory),
        served(broker, desk.names, desk=desk.directory, judged=judged) as http,
    ):
        answer = await http.client.post("/v1/replays", json=ROLE)
        assert problem(answer) == (503, "broker_unavailable")
        assert http.watch._recent_failure() == "cannot read internal.progress: no right"
        await replay(http, **ROLE)
        assert http.watch._recent_failure() is None
