"""`buddy serve`: the HTTP API, until a signal; and `buddy token`: its tokens."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from worker.cli.connect_place import place_of
from worker.cli.console import Context, OneOf, say
from worker.cli.run import create_if_embedded, listen_for_api, prepare, watched
from worker.cli.services import serve, stop_at_eof
from worker.engine.startup import check_topics
from worker.errors import UsageError
from worker.http.access import ROLES, Tokens, new_token
from worker.http.app import ApiParts, ApiSettings, api
from worker.http.health import HealthSource, OwnHealth, ServicesHealth
from worker.http.server import serve_http


@click.command("serve")
@click.option("--socket", "descriptor", type=int, hidden=True, help="An open socket to serve.")
@click.option("--health-port", type=int, hidden=True, help="The port of the services' health.")
@click.pass_obj
def serve_command(context: Context, descriptor: int | None, health_port: int | None) -> int:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    prepare(context)
    settings = context.settings
    file = settings.http_tokens_file
    tokens = Tokens(Path(file)) if file else None
    listening = listen_for_api(settings) if descriptor is None else socket.socket(fileno=descriptor)
    api_settings = ApiSettings(
        record_limit=settings.max_record_bytes, skew_seconds=settings.clock_skew_seconds
    )
    place = place_of(settings, context.environment)

    async def main(stop: asyncio.Event) -> None:
        if health_port is not None:  # a child of `buddy run`, which holds the other end
            stop_at_eof(stop)
        async with context.broker() as broker:
            await create_if_embedded(context, broker)
            await check_topics(broker, context.names, settings.max_record_bytes)
            with own_health(context, health_port) as health:
                parts = ApiParts(broker, context.names, place, health, tokens)
                async with api(parts, api_settings) as app:
                    await serve_http(app, listening, stop)

    with listening:
        return serve(main)


@contextmanager
def own_health(context: Context, health_port: int | None) -> Iterator[HealthSource]:
    """What answers for this process: itself, or the process of the services."""
    if health_port is not None:
        yield ServicesHealth(health_port)
        return
    with watched(context, "http") as (health, metrics, part):
        part.restored()
        yield OwnHealth(health, metrics)


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
