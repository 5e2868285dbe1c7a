"""The stream of rejections: each new one is told, and those that a client missed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from tests.contract.desk_kit import Desk
from tests.contract.http_kit import Served, problem
from worker.core.violations import Code
from worker.http import event_streams, rejection_stream
from worker.http.rejection_stream import EventPlace

pytestmark = pytest.mark.timeout(200)

PATH = "/v1/rejections/stream"


class Told(NamedTuple):
    """An event of the stream."""

    id: str
    data: Any

    @property
    def offset(self) -> int:
        """Of the record."""
        return int(self.data["source"].rpartition("/")[2])


class Stream:
    """A stream that a client reads."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.id = ""
        self._lines = lines

    async def opened(self) -> None:
        """Wait for the place at which it begins."""
        while not self.id:
            await self._field()

    async def next(self) -> Told:
        """The next event."""
        kind = data = ""
        while True:
            name, value = await self._field()
            kind = value if name == "event" else kind
            data = value if name == "data" else data
            if not name and data:
                assert kind == "rejection"
                return Told(self.id, json.loads(data))

    async def _field(self) -> tuple[str, str]:
        line = await anext(self._lines)
        name, _, value = line.partition(":")
        if name == "id":
            self.id = value.strip()
        return name, value.strip()


@pytest.fixture
def http(beside_a_desk: Served) -> Served:
    return beside_a_desk


@asynccontextmanager
async def streamed(http: Served, after: str = "", **query: str) -> AsyncIterator[Stream]:
    headers = {"last-event-id": after} if after else {}
    async with http.client.stream("GET", PATH, params=query, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = Stream(answer.aiter_lines())
        await stream.opened()
        yield stream


async def reject(desk: Desk, key: str, entity: str = "users") -> None:
    await desk.publish(desk.rejection(entity, key, Code.INVALID_ENUM, "role", role="mentor"))


async def test_each_new_rejection_is_told_without_its_values(desk: Desk, http: Served) -> None:
    await reject(desk, "before")
    async with streamed(http) as stream:
        await reject(desk, "a")
        told = await stream.next()
        assert told.offset == 2
        assert told.data["violations"] == [["invalid_enum", "role"]]
        assert told.data["entity"] == "users"
        assert "mentor" not in json.dumps(told.data)
        await reject(desk, "b")
        assert (await stream.next()).offset == 3


async def test_a_client_that_comes_back_is_told_what_it_missed(desk: Desk, http: Served) -> None:
    async with streamed(http) as stream:
        await reject(desk, "a")
        first = await stream.next()
    for key in "bcd":
        await reject(desk, key)
        await http.client.get("/v1/rejections")  # it is read before the next one
    async with streamed(http, first.id) as stream:
        assert [(await stream.next()).offset for _ in range(3)] == [2, 3, 4]
        await reject(desk, "e")
        assert (await stream.next()).offset == 5


async def test_to_another_store_the_last_minute_is_told_again(desk: Desk, http: Served) -> None:
    await reject(desk, "a")
    (listed,) = (await http.client.get("/v1/rejections")).json()["rejections"]
    async with streamed(http) as stream:
        await reject(desk, "b")
        told = await stream.next()
    here = rejection_stream.decode_place(told.id)
    assert here is not None
    elsewhere = EventPlace("another", 17, here.at).encode()
    async with streamed(http, elsewhere) as stream:
        assert (await stream.next()).data["coordinate"] == listed["coordinate"]
        assert (await stream.next()).offset == 2


async def test_a_stream_may_be_of_one_entity(desk: Desk, http: Served) -> None:
    async with streamed(http, entity="matches", code="invalid_enum") as stream:
        await reject(desk, "a")
        await reject(desk, "b", "matches")
        assert (await stream.next()).data["entity"] == "matches"


async def test_streams_share_the_events(desk: Desk, http: Served) -> None:
    async with streamed(http) as one, streamed(http) as other:
        await reject(desk, "a")
        assert await one.next() == await other.next()


@pytest.mark.parametrize(
    ("query", "headers", "named"),
    [
        ("?entity=userz", {}, "entity"),
        ("?field=role", {}, "field"),
        ("", {"last-event-id": "17"}, "Last-Event-ID"),
    ],
)
async def test_what_cannot_be_streamed_is_a_problem(
    http: Served, query: str, headers: dict[str, str], named: str
) -> None:
    answer = await http.client.get(PATH + query, headers=headers)
    assert problem(answer)[0] == 400
    assert answer.json()["parameter"] == named


async def test_streams_are_bounded(http: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams, "MOST_STREAMS", 1)
    async with streamed(http):
        answer = await http.client.get(PATH)
        assert problem(answer) == (429, "too_many_streams")


async def test_a_stream_ends_with_the_server(desk: Desk, http: Served) -> None:
    async with streamed(http) as stream:
        await reject(desk, "a")
        await stream.next()
        http.stop.set()
        with pytest.raises(StopAsyncIteration):
            await stream.next()
