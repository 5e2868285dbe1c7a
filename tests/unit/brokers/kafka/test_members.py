"""The members of a group, as two requests of a broker tell them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from worker.brokers.kafka.broker import KafkaBroker
from worker.errors import ConfigurationError
from worker.stream import GroupMember

ABSENT: tuple[Any, ...] = (0, "g", "Dead", "", "", [])
PRESENT = (0, "g", "Stable", "consumer", "range", [("one", "buddy", "host", b"", b"")])
HIDDEN: tuple[Any, ...] = (69, "g", "Dead", "", "", [])


class Admin:
    """Answers with these descriptions in turn; the group is listed or not."""

    def __init__(self, *described: tuple[Any, ...], listed: bool) -> None:
        self._described = list(described)
        self._listed = listed

    async def ask(self, _attempt: object, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        return await ask(self)

    async def describe_consumer_groups(self, _groups: list[str]) -> list[Any]:
        return [SimpleNamespace(groups=[self._described.pop(0)])]

    async def list_consumer_groups(self) -> list[tuple[str, str]]:
        return [("g", "consumer")] if self._listed else []


Members = Callable[[Admin], Awaitable[list[GroupMember]]]


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> Members:
    """The members of the group, by the answers of this admin."""

    async def ask(admin: Admin) -> list[GroupMember]:
        broker = KafkaBroker("localhost:9092")
        monkeypatch.setattr(broker, "_admin", admin)
        return await broker.members("g")

    return ask


async def test_a_group_that_is_not_there_has_no_members(members: Members) -> None:
    assert await members(Admin(ABSENT, listed=False)) == []


async def test_a_group_that_begins_between_the_requests_is_not_a_hidden_one(
    members: Members,
) -> None:
    assert [m.name for m in await members(Admin(ABSENT, PRESENT, listed=True))] == ["one"]


async def test_a_group_that_stays_hidden_is_one_of_another_protocol(members: Members) -> None:
    with pytest.raises(ConfigurationError, match=r"group\.protocol=consumer has joined group g"):
        await members(Admin(HIDDEN, HIDDEN, listed=True))
