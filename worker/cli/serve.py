"""`buddy serve`: the HTTP API, until a signal; and `buddy token`: its tokens."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import click

from worker.brokers.contract import Broker
from worker.cli.api_process import tell_parent
from worker.cli.connect_place import place_of
from worker.cli.console import Context, OneOf, say
from worker.cli.desk_store import desk_directory
from worker.cli.run import (
    CLOCK,
    create_if_embedded,
    listen_for_api,
    prepare,
    tokens_of,
    watched,
)
from worker.cli.services import end_with_parent, serve
from worker.cli.settled_inputs import until_judged
from worker.cli.whole_status import whole_status
from worker.desk.reports import DeskReports
from worker.desk.service import StandInDesk
from worker.engine.startup import check_topics
from worker.errors import UsageError
from worker.http.access import ROLES, new_token
from worker.http.app import ApiParts, ApiSettings, api
from worker.http.broker_watch import BrokerWatch
from worker.http.health import HealthSource, OwnHealth, ServicesHealth
from worker.http.metrics import HttpMetrics
from worker.http.operations import NAMES
from worker.http.place_watch import PlaceWatch
from worker.http.server import serve_http
from worker.ops.instruments import Instruments
from worker.status.whole import WholeStatus
from worker.waiting import together

_DESCRIPTORS: Final = 8_192
_NICENESS: Final = 10
"""Beside the services: where both want one core, they get nine tenths of it."""
_PLACE_SECONDS: Final = 10.0
"""How long a request waits for a bucket that is away."""
_DESK_SHARE: Final = 0.5
"""The part of the time that a stand-in for the desk may take beside requests."""


@click.command("serve")
@click.option("--socket", "descriptor", type=int, hidden=True, help="An open socket to serve.")
@click.option("--health", hidden=True, help="Where the services' health is served.")
@click.pass_obj
def serve_command(context: Context, descriptor: int | None, health: str | None) -> int:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    prepare(context)
    if health is not None:  # a child of `buddy run`
        os.nice(_NICENESS)
    settings = context.settings
    tokens = tokens_of(settings)
    listening = listen_for_api(settings) if descriptor is None else socket.socket(fileno=descriptor)
    api_settings = ApiSettings(
        record_limit=settings.max_record_bytes,
        skew_seconds=settings.clock_skew_seconds,
        desk=desk_directory(context),
        show_values=settings.show_values,
        redirect_downloads=settings.http_redirect_downloads,
    )
    place = place_of(settings, context.environment, _PLACE_SECONDS)

    async def judged(broker: Broker, tasks: int, patience: float) -> None:
        await until_judged(broker, settings, tasks, patience)

    async def look(broker: Broker) -> WholeStatus:
        return await whole_status(broker, settings, ["worker"])

    async def main(stop: asyncio.Event) -> None:
        if health is not None:  # the parent holds the other end
            end_with_parent(stop)
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            await check_topics(broker, context.names, settings.max_record_bytes)
            with reporting(context, health) as told:
                watch = BrokerWatch(broker, context.names, told.hindrance, told.metrics)
                parts = ApiParts(
                    broker,
                    context.names,
                    place,
                    told.source,
                    told.metrics,
                    tokens,
                    watch,
                    judged,
                    look,
                    stop,
                )
                async with api(parts, api_settings) as app:
                    services = [
                        serve_http(app, listening, stop, told.metrics.stalled),
                        watch.run(stop),
                        PlaceWatch(place, watch).run(stop),
                    ]
                    if told.desk is not None:
                        desk = StandInDesk(
                            broker,
                            context.names,
                            api_settings.desk,
                            told.desk,
                            CLOCK,
                            share=_DESK_SHARE,
                        )
                        services.append(desk.run(stop))
                    try:
                        await together(stop, *services)
                    finally:
                        place.close()  # calls that wait for it give up

    _allow_descriptors()
    with listening:
        return serve(main)


def _allow_descriptors() -> None:
    """Raise the soft limit of open files: each connection takes one, and exports some more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Reporting(NamedTuple):
    """Where this process reports to."""

    source: HealthSource
    """What answers for it, with the metrics of the API among its own."""
    metrics: HttpMetrics
    hindrance: Callable[[str | None], None]
    """Takes what keeps the API from a part of its work, in one line; None if nothing does."""
    desk: DeskReports | None
    """None if the process of the services has a desk, which keeps the store."""


@contextmanager
def reporting(context: Context, address: str | None) -> Iterator[_Reporting]:
    """Report to this process itself, or to the process of the services, by its address."""
    if address is not None:
        make = Instruments()
        source = ServicesHealth(address, make.registry)
        yield _Reporting(source, HttpMetrics(make, NAMES), tell_parent, None)
        return
    with watched(context, "http", "desk") as (health, metrics, part, desk):
        part.restored()

        def tell_hindrance(line: str | None) -> None:
            part.alive(CLOCK.steady())
            if line is None:
                part.free("requests")
            else:
                part.hindered("requests", line, CLOCK.steady())

        yield _Reporting(
            OwnHealth(health, metrics),
            HttpMetrics(metrics.instruments, NAMES),
            tell_hindrance,
            DeskReports(metrics, desk, CLOCK),
        )


@click.command("token")
@click.argument("name")
@click.option(
    "--role",
    "roles",
    type=OneOf("a role", ROLES),
    multiple=True,
    required=True,
    help="send, watch, fetch or operate; repeat it for several.",
)
def token_command(name: str, roles: tuple[str, ...]) -> int:
    """Make a token called NAME for the HTTP API, and the entry of the tokens file for it.

    The token is shown this once: the entry holds only its hash.
    """
    if not re.fullmatch(r"[\w.@-]{1,100}", name):
        raise UsageError("a token's name has letters, digits, and . _ @ - only")
    token, digest = new_token()
    listed = ", ".join(f'"{role}"' for role in dict.fromkeys(roles))
    for line in (
        f"# The token, shown this once: {token}",
        "[[tokens]]",
        f'name = "{name}"',
        f"roles = [{listed}]",
        f'sha256 = "{digest}"',
    ):
        say(line)
    return 0
