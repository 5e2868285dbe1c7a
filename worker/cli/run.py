"""`buddy run`, `worker`, `sink` and `desk`: each runs its services until a signal."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import structlog

from worker import __version__, log
from worker.brokers.contract import Broker
from worker.cli.api_process import run_api
from worker.cli.connect_place import place_of
from worker.cli.connect_webhook import webhook_of
from worker.cli.console import Context
from worker.cli.desk_store import desk_directory
from worker.cli.services import serve, stop_at_eof
from worker.cli.settings import Settings
from worker.cli.strangers import watch_group
from worker.clock import Clock, StepWatch
from worker.core.pressure import Limits
from worker.core.task_settings import TaskSettings
from worker.desk.reports import DeskReports
from worker.desk.service import DeskService
from worker.engine.reports import WorkerReports
from worker.engine.startup import check_topics, create_topics
from worker.engine.worker import Worker
from worker.index.store import IndexStore
from worker.ops.health import Health, ServiceHealth
from worker.ops.metrics import Metrics
from worker.private import tighten
from worker.sink.export_settings import ExportSettings
from worker.sink.reports import SinkReports
from worker.sink.retention import Keep
from worker.sink.service import serve as serve_sink
from worker.waiting import together

if TYPE_CHECKING:
    from worker.http.access import Tokens

CLOCK: Final = Clock()
_SERVICES: Final = ("worker", "sink", "desk")
_DESK_SHARE: Final = 0.25
"""The part of the time that the desk may take where a worker is in the same process."""

_log = structlog.get_logger(__name__)


@click.command("run")
@click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")
@click.pass_obj
def run_command(context: Context, until_eof: bool) -> int:
    """Run worker, sink and desk in one process, until SIGTERM or Ctrl-C.

    On the embedded broker, missing topics are created first. With the setting http, a second
    process serves the HTTP API.
    """
    prepare(context)

    listening = None
    if context.settings.http:
        tokens_of(context.settings)  # a file that cannot be used is refused here
        listening = listen_for_api(context.settings)

    async def main(stop: asyncio.Event) -> None:
        if until_eof:
            stop_at_eof(stop)
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            names = _SERVICES if listening is None else (*_SERVICES, "http")
            with watched(context, *names) as (health, metrics, worker, sink, desk, *http):
                # The worker tells for all three that the clock was set.
                desk_reports = DeskReports(metrics, desk, CLOCK, tells_steps=False)
                services = [
                    _worker(context, broker, stop, WorkerReports(metrics, worker, CLOCK)),
                    _sink(context, broker, stop, SinkReports(metrics, sink, CLOCK.steady)),
                    _desk(context, broker, stop, desk_reports, _DESK_SHARE),
                ]
                if listening is not None:
                    services.append(
                        run_api(context, listening, health.address, stop, http[0], CLOCK)
                    )
                await together(stop, *services)

    with listening or nullcontext():
        return serve(main)


@click.command("worker")
@click.pass_obj
def worker_command(context: Context) -> int:
    """Validate incoming records until SIGTERM or Ctrl-C."""
    prepare(context)

    async def main(stop: asyncio.Event) -> None:
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            with watched(context, "worker") as (_, metrics, worker):
                await _worker(context, broker, stop, WorkerReports(metrics, worker, CLOCK))

    return serve(main)


@click.command("sink")
@click.pass_obj
def sink_command(context: Context) -> int:
    """Collect accepted rows and carry out export requests, until SIGTERM or Ctrl-C."""
    prepare(context)

    async def main(stop: asyncio.Event) -> None:
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            with watched(context, "sink") as (_, metrics, sink):
                reports = SinkReports(metrics, sink, CLOCK.steady, StepWatch(CLOCK))
                await _sink(context, broker, stop, reports)

    return serve(main)


@click.command("desk")
@click.pass_obj
def desk_command(context: Context) -> int:
    """Keep the store of rejections up to date, until SIGTERM or Ctrl-C.

    'buddy rejections' reads it, and is then up to date at once.
    """
    prepare(context)

    async def main(stop: asyncio.Event) -> None:
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            with watched(context, "desk") as (_, metrics, desk):
                await _desk(context, broker, stop, DeskReports(metrics, desk, CLOCK))

    return serve(main)


def listen_for_api(settings: Settings) -> socket.socket:
    """The socket of the HTTP API. Raises ConfigurationError."""
    from worker.http.listening import listen

    has_tokens = bool(settings.http_tokens_file)
    return listen(settings.http_host, settings.http_port, has_tokens=has_tokens)


def tokens_of(settings: Settings) -> Tokens | None:
    """The tokens of the HTTP API; None without a file. Raises ConfigurationError."""
    from worker.http.access import Tokens

    return Tokens(Path(settings.http_tokens_file)) if settings.http_tokens_file else None


def prepare(context: Context) -> None:
    """Log as the settings say, and keep the data directory from others."""
    settings = context.settings
    log.configure(settings.log_level)
    tighten(Path(settings.data))


@contextmanager
def watched(context: Context, *services: str) -> Iterator[tuple[Any, ...]]:
    """Health, metrics, and the health of each service. They are served over HTTP if a port is set.

    They are served to this machine alone if the HTTP API passes them on, and no port is set.
    """
    settings = context.settings
    # Logged only once the broker is open: otherwise its error is the only line.
    where = {"broker": settings.broker, "prefix": settings.prefix}
    _log.info("starting", services=services, version=__version__, **where)
    metrics = Metrics()
    # Without a port, it is there for the API of this process alone.
    host = settings.metrics_host if settings.metrics_port else "127.0.0.1"
    health = Health(metrics, CLOCK.steady, host=host, port=settings.metrics_port)
    parts = [health.part(service) for service in services]
    try:
        if settings.metrics_port or "http" in services[1:]:
            health.start()
        yield (health, metrics, *parts)
    finally:
        health.close()


async def _worker(
    context: Context, broker: Broker, stop: asyncio.Event, reports: WorkerReports
) -> None:
    settings = context.settings
    task_settings = TaskSettings(
        names=context.names,
        grace=int(settings.grace_seconds * 1000),
        skew=int(settings.clock_skew_seconds * 1000),
        record_limit=settings.max_record_bytes,
    )
    index = IndexStore(Path(settings.data) / "index")
    limits = Limits(records=settings.max_parked, bytes=settings.max_parked_mib * 1024 * 1024)
    worker = Worker(broker, task_settings, index, CLOCK, limits, reports)
    async with _group_watched(context, broker, "worker", stop, reports.health):
        await worker.run(stop)


async def _sink(
    context: Context, broker: Broker, stop: asyncio.Event, reports: SinkReports
) -> None:
    settings = context.settings
    await check_topics(broker, context.names, settings.max_record_bytes)
    exports = ExportSettings(
        place_of(settings, context.environment),
        settings.program_name,
        settings.export_patience_seconds,
        settings.schedules,
        Keep(settings.keep_exports, settings.keep_days),
    )
    store = Path(settings.data) / "sink"
    async with _group_watched(context, broker, "sink", stop, reports.health):
        await serve_sink(broker, settings.prefix, store, exports, stop, reports=reports)


async def _desk(
    context: Context,
    broker: Broker,
    stop: asyncio.Event,
    reports: DeskReports,
    share: float = 1.0,
) -> None:
    await check_topics(broker, context.names, context.settings.max_record_bytes)
    directory = desk_directory(context)
    settings = context.settings
    webhook = webhook_of(settings.incident_webhook_file, context.environment, context.names)
    service = DeskService(
        broker, context.names, directory, reports, CLOCK, webhook=webhook, share=share
    )
    await service.run(stop)


@asynccontextmanager
async def _group_watched(
    context: Context, broker: Broker, service: str, stop: asyncio.Event, health: ServiceHealth
) -> AsyncIterator[None]:
    """Meanwhile, report other programs that hold partitions of the service's group."""

    def report(line: str | None) -> None:
        if line is None:
            health.free("group")
        else:
            health.hindered("group", line, CLOCK.steady())

    group = f"{context.settings.prefix}-{service}"
    watching = asyncio.create_task(watch_group(broker, group, stop, report))
    try:
        yield
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


async def create_if_embedded(context: Context, broker: Broker) -> None:
    """Create missing topics on the embedded broker: it has no administrator to create them."""
    settings = context.settings
    if settings.broker.startswith("embedded:"):
        await create_topics(broker, context.names, settings.max_record_bytes, settings.partitions)
