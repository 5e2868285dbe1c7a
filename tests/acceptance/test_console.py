"""The console in a real browser: every page, by mouse and keyboard, in both colour schemes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, StorageState, expect

from tests.acceptance.kit import DEADLINE, Buddy
from tests.chromium import chromium_or_skipped
from tests.unit.rows_kit import user

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

TOKEN = "a-token-of-everything"
ROLES = '["send", "watch", "fetch", "operate"]'
HOSTILE = "<img src=x onerror=document.title=1>"
SIZES = {"wide": (1280, 800), "phone": (320, 640)}
PAGES = (
    "/",
    "/rejections",
    "/rejections?since=soon",
    "/exports",
    "/state",
    "/replay?code=wrong_type",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium_or_skipped() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A console with rows, rejections and a finished export, behind a token."""
    directory = tmp_path_factory.mktemp("console")
    tokens = directory / "tokens.toml"
    digest = sha256(TOKEN.encode()).hexdigest()
    tokens.write_text(f'[[tokens]]\nname = "ada"\nroles = {ROLES}\nsha256 = "{digest}"\n')
    buddy = Buddy(
        directory / "place", grace_seconds=1, http=True, http_port=0, http_tokens_file=tokens
    )
    service = buddy.start("run").ready().wait_for("http_started")
    (started,) = service.logged("http_started")
    found = f"http://127.0.0.1:{started['port']}"
    rows = [user(n)[1] for n in range(20)]
    faults: list[Any] = [{"id": n, HOSTILE: "x", "role": HOSTILE} for n in range(12)]
    send(found, b"\n".join([*rows, *(json.dumps(one).encode() for one in faults)]))
    yield found
    service.stop().succeeded()


def send(address: str, body: bytes) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-ndjson"}
    url = f"{address}/v1/records/users?wait=30s"
    answer = httpx.post(url, content=body, headers=headers, timeout=DEADLINE)
    assert answer.status_code == 200, answer.text


def context_of(
    browser: Browser,
    size: str = "wide",
    scheme: Literal["light", "dark"] = "light",
    *,
    state: StorageState | None = None,
    script: bool = True,
) -> BrowserContext:
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",  # axe must not look at a colour that is still changing
        storage_state=state,
        java_script_enabled=script,
        accept_downloads=True,
    )
    context.set_default_timeout(DEADLINE * 1_000)
    return context


def sign_in(page: Page, address: str, path: str = "/") -> None:
    page.goto(address + path)
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(address + path)


@pytest.fixture(scope="module")
def signed_in(browser: Browser, address: str) -> StorageState:
    """The cookie of somebody who has signed in."""
    context = context_of(browser)
    sign_in(context.new_page(), address)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def page(browser: Browser, address: str, signed_in: StorageState) -> Iterator[Page]:
    """The first page. Whatever the browser complains of fails the test."""
    context = context_of(browser, state=signed_in)
    page = context.new_page()
    complaints = watched(page)
    page.goto(address)
    yield page
    context.close()
    assert not complaints


def watched(page: Page) -> list[str]:
    """What the browser complains of: a policy that a page breaks, or a script that fails."""
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        answered = "the server responded with a status of" in message.text
        if message.type in ("error", "warning") and not answered:
            complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return complaints


@pytest.mark.parametrize(("size", "scheme"), [("wide", "light"), ("phone", "dark")])
def test_every_page_is_accessible_fits_and_keeps_its_policy(
    browser: Browser,
    address: str,
    signed_in: StorageState,
    size: str,
    scheme: Literal["light", "dark"],
) -> None:
    context = context_of(browser, size, scheme, state=signed_in)
    page = context.new_page()
    complaints = watched(page)
    page.goto(f"{address}/rejections")
    one = page.locator("a.coordinate").first.get_attribute("href")
    assert one is not None
    for path in (*PAGES, one):
        page.goto(address + path)
        check(page)
        if path in ("/", "/state"):
            scrolled = page.locator(".scroll").evaluate_all(
                "all => all.filter(one => one.scrollWidth > one.clientWidth)"
                ".map(one => one.getAttribute('aria-label'))"
            )
            assert not scrolled, "a column is out of sight"
    context.close()
    assert not complaints


def check(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, f"{page.url}\n{found.generate_report()}"
    room = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert room <= 0, f"{page.url} is too wide by {room}"
    assert page.locator("h1").count() == 1
    assert page.title().endswith("· Buddy Stream")


def test_the_overview_changes_by_itself(page: Page, address: str) -> None:
    expect(page.get_by_role("status")).to_have_text("Live")
    latest = page.locator("#latest .coordinate").first
    before = latest.inner_text()
    send(address, b'{"id": "none"}')
    expect(latest).not_to_have_text(before)


def test_the_sign_in_is_accessible_and_tells_of_a_wrong_token(
    browser: Browser, address: str
) -> None:
    context = context_of(browser)
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Token").fill("wrong")
    page.get_by_label("Token").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("not in the tokens file")
    check(page)
    context.close()


def test_without_a_script_every_page_works(browser: Browser, address: str) -> None:
    context = context_of(browser, script=False)
    page = context.new_page()
    sign_in(page, address)
    expect(page.get_by_role("status")).to_have_text("Reload for new figures")
    expect(page.get_by_role("heading", name="Arriving")).to_be_visible()
    context.close()


def test_the_keyboard_alone_leads_to_the_content(page: Page) -> None:
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_rejections_are_filtered_read_and_sent_again(page: Page) -> None:
    page.get_by_role("link", name="Rejections", exact=True).click()
    page.get_by_label("Entity", exact=True).select_option("users")
    page.get_by_label("Code", exact=True).select_option("missing_required_field")
    page.get_by_role("button", name="Filter").click()
    expect(page).to_have_url(re.compile("entity=users&code=missing_required_field"))
    page.locator("a.coordinate").last.click()
    expect(page.locator("tr", has_text="email").first).to_contain_text("missing_required_field")
    expect(page.locator("table")).to_contain_text(HOSTILE)
    assert page.title().startswith("buddy.in.users/")
    page.go_back()
    page.get_by_role("link", name=re.compile(r"^Send these \d+ again")).click()
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("status")).to_contain_text("would be sent again")
    page.get_by_role("button", name=re.compile(r"^Send \d+ records again$")).click()
    expect(page.get_by_role("status")).to_contain_text("were sent again")


def test_an_export_is_asked_for_and_downloaded(page: Page, tmp_path: Path) -> None:
    page.get_by_role("link", name="Exports", exact=True).click()
    page.get_by_label("xlsx").uncheck()
    page.get_by_role("button", name="Export", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("Your export is finished")
    with page.expect_download() as started:
        page.get_by_role("link", name="Download it as a zip").click()
    started.value.save_as(tmp_path / "export.zip")
    with ZipFile(tmp_path / "export.zip") as archive:
        assert "manifest.json" in archive.namelist()
        assert archive.testzip() is None
    page.get_by_text(re.compile(r"^\d+ files$")).first.click()
    with page.expect_download() as started:
        page.get_by_role("link", name=re.compile(r"users\.csv$")).first.click()
    assert re.fullmatch(r"buddy_users_\d{4}-\d\d-\d\d\.csv", started.value.suggested_filename)


def test_signing_out_ends_it(page: Page, address: str) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{address}/login")
    page.goto(f"{address}/state")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
