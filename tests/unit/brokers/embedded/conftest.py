"""A broker in a directory of each test, by the clock that the test sets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.clock_kit import SettableClock
from tests.unit.embedded_kit import opened
from worker.brokers.embedded.broker import EmbeddedBroker


@pytest.fixture
async def broker(tmp_path: Path, clock: SettableClock) -> AsyncIterator[EmbeddedBroker]:
    async with opened(tmp_path / "broker", clock) as broker:
        yield broker
