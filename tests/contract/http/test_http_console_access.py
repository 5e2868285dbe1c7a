"""Who sees which page, how a browser signs in, and which forms are taken. No matter of brokers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another
from tests.contract.desk_kit import Desk
from tests.contract.http_kit import Served, kept, problem, served
from worker.core.violations import Code
from worker.exports.places.directory import DirectoryPlace
from worker.http.access import Tokens
from worker.http.sessions import COOKIE

pytestmark = pytest.mark.timeout(200)

ROLES = {
    "ops": '"watch", "operate"',
    "viewer": '"watch"',
    "partner": '"fetch"',
    "crm": '"send"',
}


@pytest.fixture
def kind() -> str:
    return "embedded"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of tokens; each is the name of its owner."""
    path = tmp_path / "tokens.toml"
    write(path, *ROLES)
    return path


def write(path: Path, *names: str) -> None:
    path.write_text(
        "".join(
            f'[[tokens]]\nname = "{name}"\nroles = [{ROLES[name]}]\n'
            f'sha256 = "{sha256(name.encode()).hexdigest()}"\n'
            for name in names
        )
    )


@pytest.fixture
async def http(desk: Desk, another: Another, file: Path, tmp_path: Path) -> AsyncIterator[Served]:
    broker = await another()
    place = DirectoryPlace(tmp_path / "exports")
    async with (
        kept(broker, desk.names, desk.directory),
        served(
            broker,
            desk.names,
            Tokens(file),
            place=place,
            desk=desk.directory,
            show_values=True,
        ) as found,
    ):
        yield found


async def sign_in(http: Served, token: str, following: str = "/") -> httpx.Response:
    fields = {"token": token, "next": following, "form_key": ""}
    return await post(http, "/login", fields)


async def post(
    http: Served, path: str, fields: dict[str, str], origin: str | None = ""
) -> httpx.Response:
    """Send a form as a browser does: from one of our pages, from another origin, or untold."""
    headers = {} if origin is None else {"origin": origin or http.address}
    return await http.client.post(path, data=fields, headers=headers)


async def key(http: Served, path: str) -> str:
    """What the forms of a page contain."""
    found = re.search(r'name="form_key" value="(\w+)"', (await http.client.get(path)).text)
    assert found is not None
    return found[1]


async def test_who_is_not_signed_in_is_led_to_the_sign_in_and_back(http: Served) -> None:
    answer = await http.client.get("/rejections?code=invalid_enum")
    assert answer.status_code == 303
    place = urlsplit(answer.headers["location"])
    assert place.path == "/login"
    (following,) = parse_qs(place.query)["next"]
    assert 'type="password"' in (await http.client.get(answer.headers["location"])).text
    answer = await sign_in(http, "viewer", following)
    assert (answer.status_code, answer.headers["location"]) == (303, following)
    cookie = answer.headers["set-cookie"]
    assert re.search("HttpOnly", cookie)
    assert re.search("SameSite=strict", cookie, re.IGNORECASE)
    assert "Secure" not in cookie
    assert "Max-Age" not in cookie
    assert (await http.client.get(following)).status_code == 200
    assert (await http.client.get("/login")).status_code == 303


async def test_behind_https_the_cookie_stays_there(http: Served) -> None:
    headers = {"origin": http.address, "x-forwarded-proto": "https"}
    answer = await http.client.post("/login", data={"token": "viewer"}, headers=headers)
    assert "Secure" in answer.headers["set-cookie"]


async def test_a_wrong_token_signs_nobody_in_and_stands_in_no_log(http: Served) -> None:
    with capture_logs() as log:
        answer = await sign_in(http, "my-secret-guess", "https://evil.example/")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert "evil" not in answer.text
    told = {entry["event"] for entry in log if entry["log_level"] != "debug"}
    assert told - {"desk_started"} == {"sign_in_refused"}, "the desk may start meanwhile"
    assert "my-secret-guess" not in answer.text + str(log)


async def test_a_token_that_is_removed_ends_its_session(http: Served, file: Path) -> None:
    await sign_in(http, "viewer")
    assert (await http.client.get("/state")).status_code == 200
    write(file, "ops", "partner")
    assert (await http.client.get("/state")).status_code == 303


async def test_signing_out_forgets_the_token(http: Served) -> None:
    await sign_in(http, "viewer")
    answer = await post(http, "/logout", {"form_key": await key(http, "/")})
    assert answer.status_code == 303
    assert COOKIE not in http.client.cookies
    assert (await http.client.get("/")).status_code == 303


@pytest.mark.parametrize(
    ("who", "seen", "refused", "first"),
    [
        ("ops", ["/rejections", "/state", "/replay?code=invalid_enum"], ["/exports"], 200),
        ("viewer", ["/rejections", "/state"], ["/replay?code=invalid_enum", "/exports"], 200),
        ("partner", ["/exports"], ["/rejections", "/state", "/console/events"], 303),
        ("crm", [], ["/rejections", "/exports", "/state", "/replay?code=invalid_enum"], 403),
    ],
)
async def test_a_role_sees_its_pages(
    http: Served, who: str, seen: list[str], refused: list[str], first: int
) -> None:
    await sign_in(http, who)
    assert (await http.client.get("/")).status_code == first
    for path in seen:
        assert (await http.client.get(path)).status_code == 200
    for path in refused:
        answer = await http.client.get(path)
        assert answer.status_code == 403
        assert "You may not see this page" in answer.text


@pytest.mark.parametrize(("who", "shows"), [("ops", True), ("viewer", False)])
async def test_values_are_for_those_who_operate(
    desk: Desk, http: Served, who: str, shows: bool
) -> None:
    await desk.publish(desk.rejection("users", "a", Code.INVALID_ENUM, "role", role="mentor"))
    await sign_in(http, who)
    text = (await http.client.get("/rejections/in.users/0/1")).text
    assert ("mentor" in text) is shows
    assert ("Values are masked" in text) is not shows
    assert ("Send this record again" in text) is shows


async def test_the_hint_to_pull_names_a_token_where_one_is_needed(
    desk: Desk, another: Another, http: Served
) -> None:
    await sign_in(http, "partner")
    assert "exports/ --token-file FILE" in (await http.client.get("/exports")).text
    async with served(await another(), desk.names, desk=desk.directory) as without:
        assert "--token-file" not in (await without.client.get("/exports")).text


async def test_a_form_must_come_from_a_page_of_this_session(http: Served) -> None:
    await sign_in(http, "ops")
    fields = {"code": "invalid_enum", "step": "dry"}
    good = {**fields, "form_key": await key(http, "/replay?code=invalid_enum")}
    assert (await post(http, "/replay", good)).status_code == 200
    assert (await post(http, "/replay", fields)).status_code == 403
    assert (await post(http, "/replay", {**fields, "form_key": "0" * 64})).status_code == 403
    assert (await post(http, "/replay", good, origin=None)).status_code == 403
    other = await post(http, "/replay", good, origin="https://evil.example")
    assert problem(other) == (403, "other_origin")
    hidden = await post(http, "/replay", good, origin="null")
    assert problem(hidden) == (403, "other_origin")


async def test_the_api_takes_the_cookie_for_reading_alone(http: Served) -> None:
    await sign_in(http, "ops")
    assert (await http.client.get("/v1/rejections")).status_code == 200
    body = {"code": "invalid_enum", "dry_run": True}
    headers = {"origin": http.address}
    answer = await http.client.post("/v1/replays", json=body, headers=headers)
    assert problem(answer) == (401, "unauthorized")


async def test_a_person_may_follow_a_link_from_elsewhere_and_a_page_there_reads_nothing(
    http: Served,
) -> None:
    following = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert (await http.client.get("/login", headers=following)).status_code == 200
    for changed in ({"sec-fetch-mode": "cors"}, {"sec-fetch-dest": "iframe"}):
        answer = await http.client.get("/login", headers=following | changed)
        assert problem(answer) == (403, "other_origin")
    answer = await http.client.get("/v1/rejections", headers=following)
    assert problem(answer) == (403, "other_origin")


async def test_static_files_need_no_token_and_change_their_address_with_their_content(
    http: Served,
) -> None:
    text = (await http.client.get("/login")).text
    addresses = re.findall(r'"(/console/static/[^"]+)"', text)
    assert len(addresses) == 4
    for address in addresses:
        answer = await http.client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    assert problem(await http.client.get("/console/static/pages.py")) == (404, "not_found")


async def test_without_tokens_everybody_on_this_machine_is_everybody(
    desk: Desk, another: Another
) -> None:
    async with served(await another(), desk.names, desk=desk.directory) as http:
        assert "Sign out" not in (await http.client.get("/state")).text
        assert (
            await http.client.get("/state", headers={"host": "evil.example"})
        ).status_code == 421
        answer = await post(http, "/exports", {"format": "paper"}, origin=None)
        assert answer.status_code == 403
