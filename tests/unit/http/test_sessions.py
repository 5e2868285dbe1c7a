"""Which paths are pages, and where a sign-in may lead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from worker.http.console.sign_in import place_after
from worker.http.operations import OPERATIONS
from worker.http.sessions import COOKIE, form_key, is_page, token_in_cookie


def request(method: str, path: str, cookie: str = "t0ken") -> Request:
    headers = [(b"cookie", f"{COOKIE}={cookie}".encode())]
    return Request({"type": "http", "method": method, "path": path, "headers": headers})


@pytest.mark.parametrize(
    "path", ["/", "/rejections", "/rejections/in.users/0/1", "/replay", "/exports", "/login"]
)
def test_pages(path: str) -> None:
    assert is_page(path)


@pytest.mark.parametrize("path", [one.path for one in OPERATIONS] + ["", "//evil", "*", "/v1"])
def test_the_api_has_no_pages(path: str) -> None:
    assert not is_page(path)


def test_the_cookie_serves_pages_and_reading() -> None:
    assert token_in_cookie(request("POST", "/replay")) == "t0ken"
    assert token_in_cookie(request("GET", "/v1/exports/x/zip")) == "t0ken"
    for method in ("POST", "DELETE", "PUT"):
        assert token_in_cookie(request(method, "/v1/replays")) is None


def test_the_key_of_forms_follows_from_the_token_and_does_not_give_it_away() -> None:
    one, other = (form_key(request("GET", "/", token)) for token in ("one", "other"))
    assert one != other
    assert "one" not in one
    assert form_key(request("POST", "/replay", "one")) == one
    assert form_key(Request({"type": "http", "method": "GET", "path": "/", "headers": []})) == ""


@pytest.mark.parametrize("text", ["/", "/rejections?code=invalid_enum", "/exports"])
def test_a_sign_in_leads_on_to_pages(text: str) -> None:
    assert place_after(text) == text


@given(st.text(max_size=50) | st.sampled_from(["//evil.example/", "/\\evil", "https://evil/", ""]))
def test_and_nowhere_else(text: str) -> None:
    found = place_after(text)
    assert is_page(found.partition("?")[0])
    assert not found.startswith(("//", "/\\"))
