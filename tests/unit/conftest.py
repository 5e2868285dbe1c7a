"""Unit tests have a clock to set. They see no settings of whoever runs them, nor those of CI."""

from __future__ import annotations

import os

import pytest

from tests.clock_kit import SettableClock


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of ours is set."""
    for name in [name for name in os.environ if name.startswith("BUDDY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def clock() -> SettableClock:
    """Stands still until the test moves it."""
    return SettableClock()
