"""Other programs in a group of ours are told, and told only once in the log."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

from structlog.testing import capture_logs

from worker.cli import strangers
from worker.cli.strangers import watch_group
from worker.errors import BrokerUnavailable, ConfigurationError
from worker.status.strangers import stranger_in
from worker.stream import GroupMember

OURS = GroupMember("ours", frozenset({0}))
IDLE = GroupMember("console-1", frozenset(), ours=False)
BUSY = GroupMember("console-2", frozenset({1, 0}), ours=False)


def test_a_program_that_holds_nothing_keeps_nothing() -> None:
    assert stranger_in("g", []) is stranger_in("g", [OURS, IDLE]) is None
    line = stranger_in("g", [OURS, IDLE, BUSY])
    assert line is not None
    assert line.startswith("console-2, another program, is in group g and keeps partitions 0, 1 ")


class _Broker:
    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.stop = asyncio.Event()

    async def members(self, group: str) -> list[GroupMember]:
        assert group == "g"
        answer = self._answers.pop(0)
        if not self._answers:
            self.stop.set()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, list)
        return answer


def test_it_is_reported_until_it_is_gone_whatever_happens_between() -> None:
    hidden = ConfigurationError("who works in g cannot be told")
    broker: Any = _Broker(
        [OURS], [BUSY], [BUSY, OURS], BrokerUnavailable("away"), [IDLE], hidden, hidden, []
    )
    told: list[str | None] = []
    with patch.object(strangers, "LOOK_SECONDS", 0.0), capture_logs() as logs:
        asyncio.run(watch_group(broker, "g", broker.stop, told.append))
    line = stranger_in("g", [BUSY])
    assert told == [None, line, line, line, None, str(hidden), str(hidden), None]
    assert [(e["event"], e["reason"]) for e in logs] == [
        ("stranger_in_group", line),
        ("stranger_in_group", str(hidden)),
    ]
