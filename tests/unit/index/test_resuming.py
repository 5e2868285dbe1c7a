"""Asking the broker whether the log is the one that was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import pytest

from tests.unit.index.tails_kit import LOG, PLACE, read
from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable
from worker.index import resuming
from worker.index.freshness import SavedIndex
from worker.index.resuming import another_log, went_back
from worker.stream import Message, OffsetRange, Partition

OTHER = Partition(PLACE.topic, 1)
SAVED = SavedIndex(1, 0, {PLACE: 10}, {}, read(LOG, 10))


class _Silent:
    """A reader of a partition that gives nothing; damaged, if so said."""

    def __init__(self, damaged: Mapping[Partition, str]) -> None:
        self.damaged = lambda: damaged
        self.closed = False

    def assign(self, positions: Mapping[Partition, int]) -> None:
        self.position = positions.__getitem__

    async def read(self, *_: object) -> Sequence[Message]:
        return []

    async def close(self) -> None:
        self.closed = True


def broker_of(reader: _Silent) -> Broker:
    return cast("Broker", SimpleNamespace(reader=lambda: reader))


async def test_a_partition_that_gives_nothing_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "_PATIENCE", 0.0)
    reader, steps = _Silent({}), list[None]()
    with pytest.raises(BrokerUnavailable, match=f"reading {PLACE.topic}/0 again"):
        await another_log(
            broker_of(reader), SAVED, {PLACE: OffsetRange(0, 20)}, lambda: steps.append(None)
        )
    assert reader.closed
    assert steps, "whoever watches is told that this is alive"


async def test_a_damaged_partition_is_not_waited_for() -> None:
    reader = _Silent({PLACE: "…"})
    reason = await another_log(broker_of(reader), SAVED, {PLACE: OffsetRange(0, 20)})
    assert "is damaged where it was read last" in str(reason)
    assert reader.closed


@pytest.mark.parametrize(
    ("messages", "position", "found"),
    [
        (LOG[10:12], 12, None),
        ([], 10, None),
        ([], 0, PLACE),
        (LOG[:3], 3, PLACE),
        (LOG[:12], 12, PLACE),
    ],
)
def test_a_reader_that_has_begun_anew_is_noticed(
    messages: list[Message], position: int, found: Partition | None
) -> None:
    elsewhere = [Message(OTHER.topic, 1, 5, 0, b"k", b"v")]
    positions = {PLACE: position, OTHER: 6}
    assert went_back([*elsewhere, *messages], positions, {PLACE: 10, OTHER: 5}) == found
