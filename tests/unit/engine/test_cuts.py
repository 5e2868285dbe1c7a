"""Where a log was cut that may have grown since: the append times say so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.engine import cuts
from worker.engine.cuts import cut_at
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, OffsetRange, Partition

PLACE = Partition("p.in.users", 0)


class Log:
    """A partition whose messages arrived at these times; None where nothing is."""

    def __init__(self, *times: int | None, appended: bool = True, start: int = 0) -> None:
        self.messages = [
            Message(*PLACE, at, time, None, None, (), appended)
            for at, time in enumerate(times, start)
            if time is not None
        ]
        self.span = OffsetRange(start, start + len(times))
        self.line: str | None = None
        self.stalls = False
        self.read_from: list[int] = []
        self._position = 0

    async def cut_at(self, latest: int) -> int:
        broker = SimpleNamespace(reader=lambda *, uncommitted: self)
        return await cut_at(cast("Any", broker), PLACE, self.span, latest)

    def assign(self, positions: dict[Partition, int]) -> None:
        self._position = positions[PLACE]
        self.read_from.append(self._position)

    def position(self, _place: Partition) -> int:
        return self._position

    async def read(self, limit: int, _timeout: float) -> list[Message]:
        if self.stalls:
            return []
        found = [m for m in self.messages if m.offset >= self._position][:limit]
        self._position = found[-1].offset + 1 if len(found) == limit else self.span.end + 3
        return found

    def damaged(self) -> dict[Partition, str]:
        return {} if self.line is None else {PLACE: self.line}

    async def close(self) -> None:
        pass


@given(
    st.lists(st.none() | st.integers(1, 9), max_size=30),
    st.lists(st.none() | st.integers(11, 19), max_size=30),
    st.integers(0, 3),
    st.sampled_from([1, 3, 1_000]),
)
async def test_what_arrived_later_is_new(
    old: list[int | None], new: list[int | None], start: int, first: int
) -> None:
    log = Log(*old, *new, start=start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "_FIRST", first)
        found = await log.cut_at(10)
    there = [m.offset for m in log.messages if m.timestamp > 10]
    assert found == min(there, default=log.span.end)


async def test_only_the_end_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_FIRST", 2)
    log = Log(*[1] * 1_000, 11, 12, 13)
    assert await log.cut_at(10) == 1_000
    assert log.read_from == [1_001, 995]


async def test_where_no_append_time_is_known_reading_goes_on_at_the_end() -> None:
    assert await Log(1, 2, 3).cut_at(0) == 3
    assert await Log(11, 12, appended=False).cut_at(10) == 2
    assert await Log().cut_at(10) == 0


async def test_a_log_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(1, 2)
    log.line = "damaged"
    with pytest.raises(DamagedLog, match="damaged"):
        await log.cut_at(1)
    monkeypatch.setattr(cuts, "_PATIENCE", 0)
    log = Log(1, 2)
    log.stalls = True
    with pytest.raises(BrokerUnavailable, match=r"p\.in\.users/0 makes no progress"):
        await log.cut_at(1)
