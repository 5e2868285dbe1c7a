"""The HTTP API inside the test: on a broker, behind a port of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.contract.worker_kit import PATIENCE, Row, Stage
from worker.brokers.contract import Broker
from worker.cli.settings import Settings
from worker.cli.settled_inputs import until_judged
from worker.cli.whole_status import whole_status
from worker.clock import Clock
from worker.core.topics import Names
from worker.desk.reports import DeskReports
from worker.desk.service import StandInDesk
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.place import ExportPlace
from worker.http.access import Tokens
from worker.http.app import ApiParts, ApiSettings, api
from worker.http.broker_watch import BrokerWatch
from worker.http.health import OwnHealth
from worker.http.listening import listen
from worker.http.metrics import HttpMetrics
from worker.http.operations import NAMES
from worker.http.replays import UntilJudged
from worker.http.server import serve_http
from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.status.whole import WholeStatus
from worker.stream import Message, Partition

RECORD_LIMIT = 64 * 1024


class Served:
    """The API at an address, and a client of it. The API uses the broker that it was given."""

    def __init__(
        self, address: str, client: httpx.AsyncClient, stop: asyncio.Event, watch: BrokerWatch
    ) -> None:
        self.address = address
        self.client = client
        self.stop = stop
        self.watch = watch

    async def send(self, entity: str, body: Any, *, wait: str = "", **options: Any) -> Any:
        """What `POST /v1/records/{entity}` answers, after it was successful."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        query = {"wait": wait} if wait else {}
        answer = await self.client.post(
            f"/v1/records/{entity}", content=content, params=query, **options
        )
        assert answer.status_code in (200, 202), answer.text
        return answer.json()


@asynccontextmanager
async def served(
    broker: Broker,
    names: Names,
    tokens: Tokens | None = None,
    *,
    place: ExportPlace | None = None,
    desk: Path = Path("no-desk"),
    show_values: bool = False,
    judged: UntilJudged | None = None,
    redirect_downloads: bool = False,
) -> AsyncIterator[Served]:
    """Serve the API until the end of the block. Nobody keeps the store of its desk: see `kept`."""
    stop = asyncio.Event()
    metrics = Metrics()
    health = OwnHealth(Health(metrics, Clock().steady), metrics)
    settings = ApiSettings(
        record_limit=RECORD_LIMIT,
        skew_seconds=60,
        desk=desk,
        show_values=show_values,
        redirect_downloads=redirect_downloads,
    )

    async def really(broker: Broker, tasks: int, patience: float) -> None:
        await until_judged(broker, Settings(prefix=names.prefix), tasks, patience)

    async def look(broker: Broker) -> WholeStatus:
        return await whole_status(broker, Settings(prefix=names.prefix), ["worker"])

    exports = place or DirectoryPlace(Path("no-exports"))
    counted = HttpMetrics(metrics.instruments, NAMES)
    watch = BrokerWatch(broker, names, lambda _line: None, counted)
    until = judged or really
    parts = ApiParts(broker, names, exports, health, counted, tokens, watch, until, look, stop)
    with listen("127.0.0.1", 0, has_tokens=False) as listening:
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with (
            api(parts, settings) as app,
            httpx.AsyncClient(base_url=address, timeout=PATIENCE) as client,
        ):
            serving = asyncio.create_task(serve_http(app, listening, stop, counted.stalled))
            try:
                yield Served(address, client, stop, watch)
            finally:
                await client.aclose()
                stop.set()
                await serving


@asynccontextmanager
async def kept(broker: Broker, names: Names, desk: Path) -> AsyncIterator[None]:
    """Keep the store of a desk up to date until the end of the block, as `buddy serve` does."""
    clock, metrics, stop = Clock(), Metrics(), asyncio.Event()
    reports = DeskReports(metrics, Health(metrics, clock.steady).part("desk"), clock)
    service = StandInDesk(broker, names, desk, reports, clock)
    running = asyncio.create_task(service.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def inputs(stage: Stage, entity: str = "users") -> list[Message]:
    """All messages of an input."""
    return await messages(stage.broker, stage.names.input(entity), stage.tasks)


async def messages(broker: Broker, topic: str, partitions: int) -> list[Message]:
    """All messages of a topic."""
    spans = await broker.spans(Partition(topic, number) for number in range(partitions))
    reader = broker.reader()
    reader.assign({partition: span.start for partition, span in spans.items()})
    found: list[Message] = []
    while any(reader.position(partition) < span.end for partition, span in spans.items()):
        found += await reader.read(5_000, 0.1)
    await reader.close()
    return found


def ndjson(rows: Iterable[Row]) -> bytes:
    """Records as lines."""
    return b"".join((value or b"") + b"\n" for _, value in rows)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer that is an error, once its form was looked at."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body.keys() >= {"type", "title", "code", "detail"}
    return answer.status_code, body["code"]
