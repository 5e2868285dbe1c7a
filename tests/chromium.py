"""A real Chromium for tests and screenshots, from the system's packages, without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")


class ChromiumUnavailable(Exception):
    """There is no Chromium here; the text says what to install."""


def executable() -> str:
    """The program. `BUDDY_CHROMIUM` names another one than that on the path."""
    found = os.environ.get("BUDDY_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise ChromiumUnavailable("no Chromium: apt-get install chromium, or set BUDDY_CHROMIUM")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running browser. Raises ChromiumUnavailable."""
    program = executable()
    with sync_playwright() as playwright:
        # Without its sandbox: it needs rights that a container lacks, and only our pages are shown.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def chromium_or_skipped() -> Iterator[Browser]:
    """A running browser. Without one the test is skipped, or fails if BUDDY_REQUIRE_CHROMIUM=1."""
    try:
        executable()
    except ChromiumUnavailable as error:
        if os.environ.get("BUDDY_REQUIRE_CHROMIUM") == "1":
            raise
        pytest.skip(str(error))
    with chromium() as browser:
        yield browser
