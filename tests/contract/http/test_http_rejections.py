"""Rejections over HTTP: the list and its pages, counts, one rejection, and who sees its values."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.contract.broker_kit import Another, DeleteTopic
from tests.contract.desk_kit import Desk
from tests.contract.helpers import damage_embedded
from tests.contract.http_kit import Served, kept, problem, served
from tests.unit.rows_kit import uuid
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.violations import Code
from worker.desk.store import RejectionStore
from worker.http import desk_reader, opaque
from worker.http.access import Tokens
from worker.http.desk_reader import DeskReader
from worker.http.problems import Problem
from worker.http.rejection_query import Cursor
from worker.stream import Partition

pytestmark = pytest.mark.timeout(200)

ROLES = ("send", "watch", "operate")


@pytest.fixture
def http(beside_a_desk: Served) -> Served:
    return beside_a_desk


def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens.toml"
    tables = [
        f'[[tokens]]\nname = "{role}"\nroles = ["watch", "{role}"]\nsha256 = "{digest}"\n'
        for role in ROLES
        for digest in [sha256(role.encode()).hexdigest()]
    ]
    path.write_text("".join(tables).replace('["watch", "send"]', '["send"]'))
    return Tokens(path)


async def get(http: Served, path: str, **query: Any) -> Any:
    answer = await http.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sources(answer: Any) -> list[int]:
    """The offsets of the records, in the order of the list."""
    return [int(one["source"].rpartition("/")[2]) for one in answer["rejections"]]


async def test_the_list_holds_what_is_open_newest_first(desk: Desk, http: Served) -> None:
    await desk.publish(desk.rejection("users", "a", Code.INVALID_ENUM, "role"))
    await desk.publish(desk.rejection("matches", "b", Code.MISSING_REQUIRED_FIELD, "user_id"))
    answer = await get(http, "/v1/rejections")
    assert (answer["next"], answer["damage"]) == (None, [])
    assert sources(answer) == [2, 1]
    newest, oldest = answer["rejections"]
    assert (newest["entity"], oldest["entity"]) == ("matches", "users")
    assert oldest["violations"] == [["invalid_enum", "role"]]
    assert oldest["source"] == f"{desk.names.input('users')}/0/1"
    assert oldest.keys() == {
        *("coordinate", "source", "at", "entity", "violations", "producer", "state", "cause")
    }
    await desk.publish(desk.row("users", "a"))
    assert sources(await get(http, "/v1/rejections")) == [2]
    both = await get(http, "/v1/rejections", all="true")
    assert [one["state"] for one in both["rejections"]] == ["open", "accepted"]


@pytest.mark.parametrize("kind", ["embedded"])
async def test_answers_say_what_damage_hides(desk: Desk, http: Served) -> None:
    assert isinstance(desk.broker, EmbeddedBroker)
    topic = desk.names.rejected("users")
    written = await desk.broker.publish([desk.rejection("users", "a", Code.INVALID_ENUM, "role")])
    place = Partition(topic, written[0][0])
    await damage_embedded(desk.broker, place)
    await desk.publish(desk.rejection("matches", "b", Code.MISSING_REQUIRED_FIELD, "user_id"))
    answer = await get(http, "/v1/rejections")
    assert sources(answer) == [2]
    (line,) = answer["damage"]
    assert line.startswith(f"{topic}/{place.number} is damaged from offset 0")
    assert (await get(http, "/v1/rejections/summary"))["damage"] == [line]
    page = await http.client.get("/rejections")
    assert f"{topic}/{place.number} is damaged from offset 0" in page.text
    asked = {"entity": "matches", "at_once": True}
    refused = await http.client.post("/v1/replays", json=asked)
    assert problem(refused) == (503, "broker_unavailable")
    assert refused.json()["detail"] == line


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"entity": "users"}, [2, 1]),
        ({"code": "wrong_type"}, [3, 2]),
        ({"entity": "users", "code": "wrong_type"}, [2]),
        ({"field": "role"}, [1]),
        ({"entity": "users", "key": "b"}, [2]),
        ({"partition": "0"}, [3, 2, 1]),
        ({"partition": "1"}, []),
        ({"producer": "nobody"}, []),
        ({"since": "2h"}, [3, 2, 1]),
    ],
)
async def test_filters_choose(
    desk: Desk, http: Served, query: dict[str, str], expected: list[int]
) -> None:
    for rejection in (
        desk.rejection("users", "a", Code.INVALID_ENUM, "role"),
        desk.rejection("users", "b", Code.WRONG_TYPE, "email"),
        desk.rejection("matches", "c", Code.WRONG_TYPE, "buddy_id"),
    ):
        await desk.publish(rejection)
        await get(http, "/v1/rejections")  # it is read before the next one: the order is known
    assert sources(await get(http, "/v1/rejections", **query)) == expected
    counted = await get(http, "/v1/rejections/summary", **query)
    assert counted["open"] == counted["rejections"] == len(expected)


async def test_pages_stay_the_same_while_rejections_come_and_go(desk: Desk, http: Served) -> None:
    def users(first: int, end: int) -> list[Any]:
        return [
            desk.rejection("users", str(n), Code.INVALID_ENUM, "role") for n in range(first, end)
        ]

    await desk.publish(*users(0, 25))
    first = await get(http, "/v1/rejections", limit=10)
    everything = sources(await get(http, "/v1/rejections", limit=1_000))
    assert sources(first) == everything[:10]
    gone = everything[12]
    await desk.publish(*users(25, 35), desk.row("users", str(gone - 1)))
    second = await get(http, "/v1/rejections", limit=10, after=first["next"])
    third = await get(http, "/v1/rejections", limit=10, after=second["next"])
    rest = [offset for offset in everything[10:] if offset != gone]
    assert sources(second) + sources(third) == rest
    assert third["next"] is None


async def test_a_cursor_of_another_store_is_refused(desk: Desk, http: Served) -> None:
    await desk.publish(desk.rejection("users", "a", Code.INVALID_ENUM, "role"))
    cursor = opaque.encode(Cursor("0" * 32, 1))
    answer = await http.client.get("/v1/rejections", params={"after": cursor})
    assert problem(answer) == (410, "stale_cursor")


@pytest.mark.parametrize(
    ("path", "named", "code"),
    [
        ("/v1/rejections?entiti=users", "entiti", "unknown_parameter"),
        ("/v1/rejections?entity=userz", "entity", "malformed_parameter"),
        ("/v1/rejections?code=broken", "code", "malformed_parameter"),
        ("/v1/rejections?key=a", "key", "malformed_parameter"),
        ("/v1/rejections?since=yesterday", "since", "malformed_parameter"),
        ("/v1/rejections?partition=-1", "partition", "malformed_parameter"),
        ("/v1/rejections?limit=1001", "limit", "malformed_parameter"),
        ("/v1/rejections?limit=0", "limit", "malformed_parameter"),
        ("/v1/rejections?all=perhaps", "all", "malformed_parameter"),
        ("/v1/rejections?after=%C3%A9", "after", "malformed_parameter"),
        ("/v1/rejections?entity=users&entity=matches", "entity", "malformed_parameter"),
        ("/v1/rejections/summary?limit=5", "limit", "unknown_parameter"),
        ("/v1/rejections/in.users/0/1?all=true", "all", "unknown_parameter"),
        ("/v1/rejections/in.userz/0/1", "coordinate", "malformed_parameter"),
        ("/v1/rejections/in.users/0/x", "coordinate", "malformed_parameter"),
    ],
)
async def test_what_cannot_be_asked_names_the_parameter(
    http: Served, path: str, named: str, code: str
) -> None:
    answer = await http.client.get(path)
    assert problem(answer) == (400, code)
    assert answer.json()["parameter"] == named
    assert named in answer.json()["detail"]


async def test_the_summary_counts_by_kind_and_has_the_incidents(desk: Desk, http: Served) -> None:
    await desk.publish(
        *(desk.rejection("users", str(n), Code.INVALID_ENUM, "role", new="1") for n in range(3))
    )
    answer = await get(http, "/v1/rejections/summary")
    assert (answer["rejections"], answer["open"], answer["incidents"]) == (3, 3, [])
    (kind,) = answer["violations"]
    assert (kind["entity"], kind["code"], kind["field"]) == ("users", "invalid_enum", "role")
    assert (kind["records"], kind["open"], kind["consequences"]) == (3, 3, 0)
    assert answer["unknown_names"] == {"users": {"new": 3}}


async def shown(http: Served, path: str, role: str = "") -> Any:
    headers = {"authorization": f"Bearer {role}"} if role else {}
    answer = await http.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("topic", ["in.users", "rejected.users", "{prefix}.in.users"])
async def test_one_rejection_is_shown_with_its_values_masked(
    desk: Desk, http: Served, topic: str
) -> None:
    made = desk.rejection("users", "a", Code.INVALID_ENUM, "role", role="mentor")
    ((number, offset),) = await desk.broker.publish([made])
    where = topic.format(prefix=desk.names.prefix)
    at = f"{where}/0/1" if "in." in topic else f"{where}/{number}/{offset}"
    answer = await shown(http, f"/v1/rejections/{at}")
    assert answer["violations"] == [
        {"code": "invalid_enum", "field": "role", "message": "why", "severity": "error"}
    ]
    assert (answer["state"], answer["key"], answer["cause"]) == ("open", "a", None)
    assert (answer["masked"], answer["form"]) == (True, "json")
    assert answer["record"] == {"role": '"m•••••" 6 characters'}


async def test_values_are_shown_where_the_setting_and_the_role_allow_it(
    desk: Desk, another: Another, tmp_path: Path
) -> None:
    await desk.publish(desk.rejection("users", "a", Code.INVALID_ENUM, "role", role="mentor"))
    path = "/v1/rejections/in.users/0/1"
    broker, names, known = await another(), desk.names, tokens(tmp_path)
    async with kept(broker, names, desk.directory):
        async with served(broker, names, known, desk=desk.directory, show_values=True) as http:
            assert (await shown(http, path, "operate"))["record"] == {"role": "mentor"}
            assert (await shown(http, path, "watch"))["masked"] is True
        async with served(broker, names, known, desk=desk.directory) as http:
            assert (await shown(http, path, "operate"))["masked"] is True


async def test_there_may_be_no_such_rejection(http: Served) -> None:
    answer = await http.client.get("/v1/rejections/in.users/0/17")
    assert problem(answer) == (404, "no_rejection")


async def test_watching_takes_its_role(desk: Desk, another: Another, tmp_path: Path) -> None:
    sender = {"authorization": "Bearer send"}
    async with served(await another(), desk.names, tokens(tmp_path), desk=desk.directory) as http:
        for path in ("", "/summary", "/in.users/0/1"):
            answer = await http.client.get(f"/v1/rejections{path}", headers=sender)
            assert problem(answer) == (403, "forbidden")
        watcher = {"authorization": "Bearer watch"}
        answer = await http.client.post("/v1/replays", content=b"{}", headers=watcher)
        assert problem(answer) == (403, "forbidden")


async def test_without_a_desk_there_is_no_answer(
    desk: Desk, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_reader, "ANSWER_SECONDS", 0.5)
    async with served(await another(), desk.names, desk=desk.directory) as http:
        answer = await http.client.get("/v1/rejections")
        assert problem(answer) == (503, "desk_behind")
        assert answer.headers["retry-after"] == "5"


async def test_a_question_that_takes_too_long_is_given_up(
    desk: Desk, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    broker = await another()
    async with kept(broker, desk.names, desk.directory):
        reader = DeskReader(broker, desk.names, desk.directory)
        assert await reader.ask(lambda store: store.database.rows("SELECT 1")) == [(1,)]
        monkeypatch.setattr(desk_reader, "ANSWER_SECONDS", 3.0)
        with pytest.raises(Problem, match="within"):
            await reader.ask(lambda store: store.database.rows(endless))
        monkeypatch.undo()
        assert await reader.ask(lambda store: store.database.rows("SELECT 1")) == [(1,)]


async def test_it_reads_beside_another_process(desk: Desk, another: Another) -> None:
    """The store is open elsewhere: the stand-in waits in silence, and requests read it."""
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    assert await desk.look() == (1, 1)
    broker = await another()
    store = RejectionStore(desk.directory, desk.names)
    try:
        async with (
            kept(broker, desk.names, desk.directory),
            served(broker, desk.names, desk=desk.directory) as http,
        ):
            assert sources(await get(http, "/v1/rejections")) == [1]
    finally:
        store.close()


async def test_a_missing_topic_is_said(desk: Desk, http: Served, remove: DeleteTopic) -> None:
    await remove(desk.names.rejected("users"))
    answer = await http.client.get("/v1/rejections")
    assert problem(answer) == (503, "missing_topic")
