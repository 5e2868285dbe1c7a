"""The HTTP API beside the services of `buddy run`: a process of its own, so it costs them nothing.

It inherits the listening socket, so a restart loses no connection, and ends with its parent for any
reason: its standard input ends then.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Final

import structlog

from worker.cli.console import Context
from worker.clock import Clock
from worker.ops.health import ServiceHealth
from worker.waiting import Backoff, wait

_END_SECONDS: Final = 10.0
"""How long the process may take to end, longer than requests in progress may."""

_log = structlog.get_logger(__name__)


async def run_api(
    context: Context,
    listening: socket.socket,
    address: str,
    stop: asyncio.Event,
    health: ServiceHealth,
    clock: Clock,
) -> None:
    """Run the API until `stop` is set; start it anew if it ends.

    `address` is where this process serves its health, and `health` the part of the API in it.
    """
    backoff = Backoff(clock.steady, first=1.0, longest=30.0)
    watching = asyncio.create_task(_alive(stop, health, clock))
    try:
        while not stop.is_set():
            backoff.succeeded()
            try:
                process = await _start(context, listening, address)
            except OSError as error:  # too many processes, or no memory
                await _ended(error.strerror or str(error), backoff, stop, health, clock)
                continue
            health.restored()
            health.free("process")
            ended = asyncio.create_task(process.wait())
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not ended.done():
                await _end(process)
                return
            await _ended(f"exit code {process.returncode}", backoff, stop, health, clock)
    finally:
        watching.cancel()


async def _ended(
    why: str, backoff: Backoff, stop: asyncio.Event, health: ServiceHealth, clock: Clock
) -> None:
    """Report that the process has ended, and wait until it may be started again."""
    seconds = backoff.failed()
    _log.error("http_ended", reason=why, seconds=round(seconds, 1))
    reason = f"the process has ended ({why}), and is started again"
    health.hindered("process", reason, clock.steady())
    await wait(stop, seconds)


async def _alive(stop: asyncio.Event, health: ServiceHealth, clock: Clock) -> None:
    """Report that this process turns: the API has nothing else to report of itself."""
    while not stop.is_set():
        health.alive(clock.steady())
        await wait(stop, 5.0)


async def _start(context: Context, listening: socket.socket, address: str) -> Process:
    descriptor = listening.fileno()
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker.cli",
        *context.arguments(),
        "serve",
        "--socket",
        str(descriptor),
        "--health",
        address,
        stdin=PIPE,
        pass_fds=(descriptor,),
        env=dict(context.environment),
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends both in order
    )


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
