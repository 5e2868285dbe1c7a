"""Pictures of the console for README and docs: `make screenshots`.

`buddy demo --stay` serves the console. Then records of the made-up programme go on coming for some
minutes, with a fault from a producer in the last third, so that the charts and an incident show.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Browser

from tests.chromium import chromium
from tests.paths import ROOT
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import Names
from worker.demo.record import Record
from worker.demo.record_stream import stream
from worker.desk.seen import PRODUCER_HEADER
from worker.stream import ProducerRecord

IMAGES: Final = ROOT / "docs" / "images"
SEED: Final = 7
RATE: Final = 60
"""Records a second, on average."""
MOST: Final = 1_000_000
AHEAD: Final = 3_000
"""By how many records: the demo's worker waits two seconds for a reference."""
PRODUCERS: Final = {"users": "crm", "feedback": "survey", "events": "calendar"}
SIZES: Final = {"wide": (1280, 860), "phone": (390, 844)}


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long records come")
    seconds = 60 * parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "demo"
        command = [sys.executable, "-m", "worker.cli", "demo", "--stay", "--records", "300"]
        command += ["--directory", str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
            assert demo.stdout is not None
            lines = iter(demo.stdout.readline, "")
            address = next(found[0] for line in lines if (found := re.search(r"http://\S+/", line)))
            try:
                asyncio.run(send_and_take(directory / "broker", address, seconds))
            finally:
                demo.send_signal(signal.SIGTERM)  # SIGINT may be ignored, in the background
    return 0


async def send_and_take(directory: Path, address: str, seconds: float) -> None:
    """Take the pictures after so many seconds, while records go on coming."""
    sending = asyncio.create_task(send(directory, faulty_after=0.7 * seconds))
    await asyncio.wait({sending}, timeout=seconds)

    def take_pictures() -> None:
        with chromium() as browser:
            take_all(browser, address)

    await asyncio.to_thread(take_pictures)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending


async def send(directory: Path, faulty_after: float) -> None:
    """Send records at a rate that rises and falls, until cancelled; users ahead of all others."""
    broker = EmbeddedBroker(directory)
    await broker.open()
    try:
        records = stream(MOST, SEED, datetime.now(UTC))
        users: list[Record] = []
        later: deque[Record] = deque()
        began = time.monotonic()
        while True:
            passed = time.monotonic() - began
            count = round(RATE * (1 + 0.5 * math.sin(passed / 40) + (passed % 90 < 8)))
            for record in islice(records, count if later else AHEAD):
                (users if record.entity == "users" else later).append(record)
            batch = [*users, *(later.popleft() for _ in range(count - len(users)))]
            users.clear()
            await broker.publish([message(one, faulty=passed > faulty_after) for one in batch])
            await asyncio.sleep(1)
    finally:
        await broker.close()


def message(record: Record, *, faulty: bool) -> ProducerRecord:
    """The message of a record. A faulty producer of feedback writes roles that do not exist."""
    value = record.value
    if record.entity == "feedback" and faulty and value is not None:
        value = value.replace(b'"from_role":"', b'"from_role":"our ')
    key = None if record.key is None else record.key.encode()
    producer = PRODUCERS.get(record.entity, "app")
    headers = ((PRODUCER_HEADER, producer.encode()),)
    return ProducerRecord(Names().input(record.entity), key, value, headers)


def take_all(browser: Browser, address: str) -> None:
    """One picture of each page wide, some of them dark or on a phone."""
    query = "rejections?entity=feedback&since=1h"
    take(browser, address, "console-overview-light", "wide", "light")
    take(browser, address, "console-overview-dark", "wide", "dark")
    take(browser, address, "console-overview-phone", "phone", "dark")
    take(browser, address + query, "console-rejections", "wide", "light")
    take(browser, address + query, "console-rejection", "wide", "light", click="a.coordinate")
    take(browser, address + "exports", "console-exports", "wide", "light", click="button.primary")
    take(browser, address + "state", "console-state", "wide", "dark")


def take(
    browser: Browser,
    address: str,
    name: str,
    size: str,
    scheme: Literal["light", "dark"],
    *,
    click: str | None = None,
) -> None:
    """A picture of the first screen: of the page, or of what a click on it leads to."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(address)
    if click is not None:
        page.locator(click).first.click()
        page.wait_for_url(lambda url: url != address)
    if page.locator("#live-state").count():
        page.locator("#live-state.is-live").wait_for()
    page.screenshot(path=IMAGES / f"{name}.png")
    context.close()


if __name__ == "__main__":
    sys.exit(main())
