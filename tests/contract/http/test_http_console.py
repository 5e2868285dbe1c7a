"""The pages of the console: what they show, and what their forms do."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.desk_kit import Desk
from tests.contract.http_kit import Served, problem
from tests.unit.rows_kit import uuid
from worker.core.violations import Code
from worker.http.console.pages import HEADERS

pytestmark = pytest.mark.timeout(200)

HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture
def http(beside_a_desk: Served) -> Served:
    return beside_a_desk


async def page(http: Served, path: str, status: int = 200, **query: str) -> str:
    """The text of a page, once its headers were looked at."""
    answer = await http.client.get(path, params=query or None)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    return answer.text


async def send_form(http: Served, path: str, fields: dict[str, Any]) -> Any:
    return await http.client.post(path, data=fields, headers={"origin": http.address})


async def test_the_overview_shows_figures_codes_and_what_is_open(desk: Desk, http: Served) -> None:
    await desk.publish(desk.rejection("users", "a", Code.INVALID_ENUM, "role"))
    text = await page(http, "/")
    assert "Arriving" in text
    assert "By entity, since the beginning" in text
    assert f"/rejections/{desk.names.input('users')}/0/1" in text


async def test_the_overview_is_live(desk: Desk, http: Served) -> None:
    async with http.client.stream("GET", "/console/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: live"
        part = []
        while line := await anext(lines):
            assert line.startswith("data: ")
            part.append(line)
        assert any('id="figures"' in line for line in part)
        await desk.publish(desk.rejection("users", "a", Code.WRONG_TYPE, "role"))
        async for line in lines:
            if "wrong_type" in line:
                break


async def test_the_stream_ends_with_the_process(http: Served) -> None:
    async with http.client.stream("GET", "/console/events") as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        http.stop.set()
        assert [line async for line in lines]


async def test_the_list_has_its_filters_in_the_address(desk: Desk, http: Served) -> None:
    await desk.publish(
        desk.rejection("users", "a", Code.INVALID_ENUM, "role"),
        desk.rejection("matches", "b", Code.WRONG_TYPE, "buddy_id"),
    )
    both = await page(http, "/rejections", entity="", code="", since="")
    assert "in.users/0/1" in both
    assert "in.matches/0/2" in both
    chosen = await page(http, "/rejections", entity="users", since="30d")
    assert "in.users/0/1" in chosen
    assert "in.matches/0/2" not in chosen
    assert "<option selected>users</option>" in chosen
    assert 'href="/replay?entity=users&amp;since=30d"' in chosen


async def test_the_list_says_how_many_there_are(desk: Desk, http: Served) -> None:
    await desk.publish(
        desk.rejection("users", "a", Code.INVALID_ENUM, "role"),
        desk.rejection("users", "b", Code.INVALID_ENUM, "role"),
        desk.rejection("matches", "c", Code.WRONG_TYPE, "buddy_id"),
        desk.row("users", "b"),
    )
    every = await page(http, "/rejections", all="true")
    assert "3, 2 open" in every
    assert "Send" not in every, "nothing is chosen"
    assert "Send this one again" in await page(http, "/rejections", entity="users")
    await desk.publish(desk.rejection("users", "d", Code.INVALID_ENUM, "role"))
    assert "Send these 2 again" in await page(http, "/rejections", entity="users")


async def test_a_filter_that_cannot_be_used_is_named(http: Served) -> None:
    text = await page(http, "/rejections", 400, since=HOSTILE)
    assert "since must be a time back from now" in unescape(text)
    assert HOSTILE not in text
    assert HOSTILE in unescape(text)


async def test_the_list_goes_on_behind_its_first_page(desk: Desk, http: Served) -> None:
    await desk.publish(
        *(desk.rejection("users", str(n), Code.INVALID_ENUM, "role") for n in range(60))
    )
    first = await page(http, "/rejections")
    older = re.search(r'href="(/rejections\?[^"]*after=[^"]*)"', first)
    assert older is not None
    second = await page(http, unescape(older[1]))
    found = [set(re.findall(r"/rejections/[\w.-]+/0/(\d+)", text)) for text in (first, second)]
    assert len(found[0]) == 50
    assert len(found[1]) == 10
    assert not found[0] & found[1]
    stale = unescape(older[1]).replace("after=", "after=e30")
    assert "an earlier answer" in await page(http, stale, 400)


async def test_one_rejection_has_its_original_beside_its_violations(
    desk: Desk, http: Served
) -> None:
    await desk.publish(
        desk.rejection("users", "a", Code.INVALID_ENUM, "role", first_name="Ada", role="mentor")
    )
    text = unescape(await page(http, "/rejections/in.users/0/1"))
    assert "Values are masked" in text
    assert "mentor" not in text
    assert "Ada" not in text
    assert '"m•••••" 6 characters' in text
    row = text.partition("<code>role</code>")[2].partition("</tr>")[0]
    assert "invalid_enum" in row
    assert "Send this record again" in text


async def test_what_others_chose_is_text_and_nothing_else(desk: Desk, http: Served) -> None:
    await desk.publish(desk.rejection("users", HOSTILE, Code.INVALID_ENUM, HOSTILE))
    for path in ("/", "/rejections", "/rejections/in.users/0/1"):
        text = await page(http, path)
        assert "<script>alert" not in text
        assert "<script>alert(1)</script>" in unescape(text)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/rejections/in.users/0/99", 404), ("/rejections/x/0/1", 400), ("/exports?after=gone", 410)],
)
async def test_an_error_is_a_page(http: Served, path: str, status: int) -> None:
    assert f"{status} <code>" in await page(http, path, status)


async def test_an_unknown_address_is_a_page_for_a_browser_alone(http: Served) -> None:
    answer = await http.client.get("/nothing", headers={"accept": "text/html,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["content-type"][:9]) == (404, "text/html")
    assert 'href="/"' in answer.text
    assert problem(await http.client.get("/nothing")) == (404, "not_found")


async def test_a_replay_is_tried_confirmed_and_done(desk: Desk, http: Served) -> None:
    await desk.publish(
        *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role", id=uuid(n)) for n in range(3))
    )
    choice = await page(http, "/replay", code="invalid_enum")
    assert "Dry run" in choice
    fields = {"code": "invalid_enum", "at_once": "true"}
    dry = await send_form(http, "/replay", fields | {"step": "dry"})
    assert dry.status_code == 200
    assert "3 records would be sent again" in dry.text
    assert "Send 3 records again" in dry.text
    with capture_logs() as log:
        sent = await send_form(http, "/replay", fields | {"step": "send"})
    assert "3 records were sent again" in sent.text
    following = re.search(r'href="(/rejections\?since=[^"]*)"', sent.text)
    assert following is not None
    assert "No open rejection is like that" in await page(http, unescape(following[1]))
    (line,) = [entry for entry in log if entry["event"] == "records_replayed"]
    assert (line["caller"], line["count"]) == ("anyone", 3)
    again = await send_form(http, "/replay", fields | {"step": "dry"})
    assert "0 records would be sent again" in again.text
    assert "3 left out: sent again before" in again.text


async def test_one_record_is_sent_again_by_its_coordinate(desk: Desk, http: Served) -> None:
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role", id=uuid(1)))
    fields = {"coordinate": "in.users/0/1", "at_once": "true", "step": "send"}
    sent = await send_form(http, "/replay", fields)
    assert "1 record was sent again" in sent.text
    assert "/rejections?entity=users&amp;since=" in sent.text
    gone = await send_form(http, "/replay", fields | {"coordinate": "in.users/0/9"})
    assert gone.status_code == 404
    assert "Nothing was sent" in gone.text


async def test_nothing_chosen_is_not_everything(http: Served) -> None:
    asked = await http.client.get("/replay?code=")
    assert (asked.status_code, asked.headers["location"]) == (303, "/rejections")
    answer = await send_form(http, "/replay", {"step": "send"})
    assert answer.status_code == 400


async def test_the_state_names_what_does_not_work(http: Served) -> None:
    text = await page(http, "/state")
    assert "no worker is running" in text
    assert "No export is scheduled" not in text


async def test_an_export_is_asked_for(http: Served) -> None:
    assert "There is no export yet" in await page(http, "/exports")
    answer = await send_form(http, "/exports", {"format": "paper"})
    assert answer.status_code == 400
    answer = await send_form(http, "/exports", {"format": "csv", "start": "soon"})
    assert answer.status_code == 400
