"""`buddy serve`: the HTTP API, until a signal; and `buddy token`: its tokens."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Final

import click

from worker.brokers.contract import Broker
from worker.cli.console import Context, OneOf, say
from worker.cli.desk_store import desk_directory
from worker.cli.run import CLOCK, create_if_embedded, prepare, watched
from worker.cli.services import serve
from worker.cli.settled_inputs import until_judged
from worker.desk.reports import DeskReports
from worker.desk.service import StandInDesk
from worker.engine.startup import check_topics
from worker.errors import UsageError
from worker.http.access import ROLES, Tokens, new_token
from worker.http.app import ApiSettings, api
from worker.http.server import listen, serve_http
from worker.waiting import together

_DESK_SHARE: Final = 0.5
"""The part of the time that a stand-in for the desk may take beside requests."""


@click.command("serve")
@click.pass_obj
def serve_command(context: Context) -> int:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    prepare(context)
    settings = context.settings
    file = settings.http_tokens_file
    tokens = Tokens(Path(file)) if file else None
    listening = listen(settings.http_host, settings.http_port, has_tokens=tokens is not None)
    api_settings = ApiSettings(
        record_limit=settings.max_record_bytes,
        skew_seconds=settings.clock_skew_seconds,
        desk=desk_directory(context),
        show_values=settings.show_values,
    )

    async def judged(broker: Broker, tasks: int, patience: float) -> None:
        await until_judged(broker, settings, tasks, patience)

    async def main(stop: asyncio.Event) -> None:
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            await check_topics(broker, context.names, settings.max_record_bytes)
            with watched(context, "http", "desk") as (metrics, health, desk_health):
                desk = StandInDesk(
                    broker,
                    context.names,
                    api_settings.desk,
                    DeskReports(metrics, desk_health, CLOCK),
                    CLOCK,
                    share=_DESK_SHARE,
                )
                async with api(broker, context.names, api_settings, tokens, judged, stop) as app:
                    health.restored()
                    await together(stop, serve_http(app, listening, stop), desk.run(stop))

    with listening:
        return serve(main)


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
