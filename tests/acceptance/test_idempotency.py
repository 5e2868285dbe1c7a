"""A process of the API is killed -9 in the middle of bodies; repeats send each record once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.accounts import broker_of, everything
from tests.acceptance.kit import DEADLINE, Another, Service
from tests.unit.rows_kit import user
from worker.brokers.contract import Broker
from worker.stream import Partition

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

ROWS = [user(n)[1] for n in range(20_000)]
KILLED_AFTER = (1, 6_000, 13_000)
HEADERS = {"content-type": "application/x-ndjson", "idempotency-key": "one upload"}


def post(service: Service) -> httpx.Response:
    """Send all rows, in pieces that fit no batch."""

    def body() -> Iterator[bytes]:
        for n in range(0, len(ROWS), 777):
            yield b"\n".join(ROWS[n : n + 777]) + b"\n"

    (started,) = service.logged("http_started")
    with httpx.Client(base_url=f"http://127.0.0.1:{started['port']}", timeout=DEADLINE) as client:
        return client.post("/v1/records/users", content=body(), headers=HEADERS)


async def reach(broker: Broker, topic: str, count: int) -> None:
    """Until so many records are in a topic."""
    topics = await broker.topics([topic])
    reader = broker.reader()
    reader.assign({Partition(topic, number): 0 for number in range(topics[topic].partitions)})
    try:
        async with asyncio.timeout(DEADLINE):
            while count > 0:
                count -= len(await reader.read(1_000, 0.05))
    finally:
        await reader.close()


async def test_killed_in_the_middle_of_a_body_a_repeat_sends_the_rest(another: Another) -> None:
    buddy = another(http_port=0)
    topic = buddy.names.input("users")
    async with broker_of(buddy) as broker:
        for count in KILLED_AFTER:
            service = buddy.start("serve").wait_for("http_started")
            request = asyncio.create_task(asyncio.to_thread(post, service))
            await reach(broker, topic, count)
            service.kill()
            with pytest.raises(httpx.TransportError):
                await request
        left = len((await everything(broker, [topic]))[topic])
        service = buddy.start("serve").wait_for("http_started")
        answer = await asyncio.to_thread(post, service)
        report = answer.json()
        assert (answer.status_code, report["sent"]) == (202, len(ROWS)), answer.text
        assert KILLED_AFTER[-1] <= report["repeated"] < len(ROWS)
        assert report["repeated"] >= left
        messages = (await everything(broker, [topic]))[topic]
        assert Counter(message.value for message in messages) == Counter(ROWS)
        by_coordinate = {f"{m.topic}/{m.partition}/{m.offset}": m.value for m in messages}
        listed = [by_coordinate[one["coordinate"]] for one in report["records"]]
        assert listed == ROWS[:10_000]
        again = (await asyncio.to_thread(post, service)).json()
        assert (again["repeated"], again["records"]) == (len(ROWS), report["records"])
    service.stop().succeeded()
    assert not service.complaints
