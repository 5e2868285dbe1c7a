"""Log lines of what may happen very often."""

from __future__ import annotations

import io
from typing import Any

import pytest
import structlog

from worker.log import Sparing, to_stderr


def test_the_first_are_told_one_by_one_and_the_others_as_a_sum_a_minute() -> None:
    said: list[dict[str, Any]] = []
    now = 0.0
    sparing = Sparing(lambda **fields: said.append(fields), lambda: now)
    sparing.warn([{"offset": n} for n in range(12)])
    assert said == [{"count": 1, "offset": n} for n in range(10)]
    now = 59.0
    sparing.warn([{"offset": 12}])
    assert len(said) == 10
    now = 60.0
    sparing.warn([])
    assert said[10:] == [{"count": 3, "offset": 12}]
    sparing.warn([{"offset": 13}])
    assert len(said) == 11
    sparing.flush()
    sparing.flush()
    assert said[11:] == [{"count": 1, "offset": 13}]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("wanted", [True, False])
def test_a_foreign_message_does_nothing_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm" if wanted else "dumb")
    monkeypatch.setenv("NO_COLOR", "")
    to_stderr("info", terminal := Terminal())
    structlog.get_logger("test").warning("broker_unavailable", error="\x1b]0;mine\x07\n\u202e")
    line = terminal.getvalue()
    assert "\\x1b]0;mine\\x07\\n\\u202e" in line
    assert line.count("\n") == 1
    assert ("\x1b[" in line) is wanted
