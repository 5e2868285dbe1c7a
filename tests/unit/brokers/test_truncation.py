"""Which logs were truncated, and where, although they may have grown since: append times say so."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.brokers import truncation
from worker.brokers.truncation import Read, truncated_at, truncated_partitions
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

    async def truncated_at(self, latest: int) -> int:
        broker = SimpleNamespace(reader=lambda *, uncommitted: self)
        return await truncated_at(cast("Any", broker), PLACE, self.span, latest)

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
        patch.setattr(truncation, "_FIRST", first)
        found = await log.truncated_at(10)
    there = [m.offset for m in log.messages if m.timestamp > 10]
    assert found == min(there, default=log.span.end)


async def test_only_the_end_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation, "_FIRST", 2)
    log = Log(*[1] * 1_000, 11, 12, 13)
    assert await log.truncated_at(10) == 1_000
    assert log.read_from == [1_001, 995]


async def test_where_no_append_time_is_known_reading_goes_on_at_the_end() -> None:
    assert await Log(1, 2, 3).truncated_at(0) == 3
    assert await Log(11, 12, appended=False).truncated_at(10) == 2
    assert await Log().truncated_at(10) == 0


async def test_a_log_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(1, 2)
    log.line = "damaged"
    with pytest.raises(DamagedLog, match="damaged"):
        await log.truncated_at(1)
    monkeypatch.setattr(truncation, "_PATIENCE", 0)
    log = Log(1, 2)
    log.stalls = True
    with pytest.raises(BrokerUnavailable, match=r"p\.in\.users/0 makes no progress"):
        await log.truncated_at(1)


# --- which inputs were truncated ------------------------------------------------------------------


class Inputs:
    """A broker with these partitions; a reader of all of them."""

    def __init__(self, **logs: Log) -> None:
        self.logs = {Partition(name, 0): log for name, log in logs.items()}
        self.read_from: dict[Partition, int] = {}

    async def truncate(self, **read: tuple[int, int]) -> list[str]:
        asked = {Partition(name, 0): Read(*both) for name, both in read.items()}
        return [
            partition.topic for partition in await truncated_partitions(cast("Any", self), asked)
        ]

    async def spans(self, partitions: Iterable[Partition]) -> dict[Partition, OffsetRange]:
        return {partition: self.logs[partition].span for partition in partitions}

    def reader(self) -> Inputs:
        return self

    def assign(self, positions: dict[Partition, int]) -> None:
        self.read_from = dict(positions)
        for partition, position in positions.items():
            self.logs[partition]._position = position

    def position(self, partition: Partition) -> int:
        return self.logs[partition]._position

    async def read(
        self, limit: int, timeout: float, paused: Collection[Partition]
    ) -> list[Message]:
        found = []
        for partition in self.read_from.keys() - set(paused):
            log = self.logs[partition]
            if log.line is None:
                found += [
                    Message(*partition, m.offset, m.timestamp, None, None, (), m.appended)
                    for m in await log.read(limit, timeout)
                ]
        return found

    def damaged(self) -> dict[Partition, str]:
        return {p: log.line for p, log in self.logs.items() if log.line is not None}

    async def close(self) -> None:
        pass


async def test_an_input_that_ends_before_what_was_read_was_truncated() -> None:
    inputs = Inputs(a=Log(1, 2, 3), b=Log(1, 2, 3), c=Log(), d=Log(1, 2))
    assert await inputs.truncate(a=(4, 3), b=(3, 3), c=(1, 9), d=(3, 0)) == ["a", "c", "d"]


async def test_an_input_that_holds_a_new_record_before_what_was_read_was_truncated() -> None:
    inputs = Inputs(a=Log(1, 2, 13, 14), b=Log(1, 2, 3, 14, 15), c=Log(1, 2, 3, None, None, 16))
    assert await inputs.truncate(a=(3, 4), b=(3, 4), c=(5, 3)) == ["a"]


async def test_what_is_unknown_was_not_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Log(11, 12, appended=False)
    assert await Inputs(a=Log(11, 12), b=late, c=Log()).truncate(a=(2, 0), b=(2, 9), c=(0, 5)) == []
    assert await Inputs(a=Log(11, start=7)).truncate(a=(7, 3)) == [], "what was read has expired"
    assert await Inputs().truncate() == []
    damaged, stalled = Log(11, 12), Log(11, 12)
    damaged.line, stalled.stalls = "damaged", True
    assert await Inputs(a=damaged).truncate(a=(2, 3)) == []
    monkeypatch.setattr(truncation, "_PATIENCE", 0)
    assert await Inputs(a=stalled).truncate(a=(2, 3)) == []


async def test_only_the_last_message_counts() -> None:
    """Those before it may have arrived later by the clock of another leader."""
    mixed = Log(1, 12, 3)
    assert await Inputs(a=mixed).truncate(a=(3, 10)) == []
    mixed.messages[2] = msgspec.structs.replace(mixed.messages[2], appended=False)
    assert await Inputs(a=mixed).truncate(a=(3, 10)) == []


async def test_only_the_last_offsets_are_compared() -> None:
    inputs = Inputs(a=Log(*[1] * 1_000, *[11] * 1_000))
    assert await inputs.truncate(a=(1_000, 1)) == []
    assert inputs.read_from == {Partition("a", 0): 990}
