"""The HTTP API beside the services of `buddy run`: a process of its own, so it costs them nothing.

It inherits the listening socket, so a restart loses no connection, and ends with its parent for any
reason. Every few seconds it writes a line to its standard output: what keeps it from a part of its
work, or nothing. A process that hangs writes none.
"""

from __future__ import annotations

import asyncio
import os
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

_SILENT_SECONDS: Final = 20.0
"""After so long without a line the process hangs."""
_SLICE_SECONDS: Final = 1.0
_LONGEST_LINE: Final = 1_000

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
            assert process.stdout is not None
            hearing = asyncio.create_task(hear(process.stdout, health, clock))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({hearing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not hearing.done():
                await _end(process)
                await hearing
                return
            await process.wait()
            await _ended(f"exit code {process.returncode}", backoff, stop, health, clock)
    finally:
        watching.cancel()


def tell_parent(hindrance: str | None) -> None:
    """Write the line of this process, which is the API: what keeps it from its work, or nothing."""
    line = " ".join((hindrance or "").split())[:_LONGEST_LINE]
    os.set_blocking(1, False)  # a parent that is frozen must not hold this process
    with suppress(OSError):
        os.write(1, f"{line}\n".encode())


async def hear(said: asyncio.StreamReader, health: ServiceHealth, clock: Clock) -> None:
    """Report what the process says, and that it says nothing, until it ends."""
    hangs = False
    silent = 0.0
    while True:
        try:
            async with asyncio.timeout(_SLICE_SECONDS):
                line = await said.readline()
        except TimeoutError:
            # Counted, not measured: while this process is frozen, it hears nothing.
            silent += _SLICE_SECONDS
            if silent >= _SILENT_SECONDS:
                if not hangs:
                    _log.error("http_hangs", seconds=_SILENT_SECONDS)
                hangs = True
                health.hindered("process", "it hangs: it serves nothing", clock.steady())
            continue
        if not line:
            return
        if hangs:
            _log.info("http_answers", seconds=silent)
        hangs = False
        silent = 0.0
        health.restored()
        health.free("process")
        if hindrance := line.decode(errors="replace").strip():
            health.hindered("requests", hindrance, clock.steady())
        else:
            health.free("requests")


async def _ended(
    why: str, backoff: Backoff, stop: asyncio.Event, health: ServiceHealth, clock: Clock
) -> None:
    """Report that the process has ended, and wait until it may be started again."""
    seconds = backoff.failed()
    _log.error("http_ended", reason=why, seconds=round(seconds, 1))
    reason = f"the process has ended ({why}), and is started again"
    health.hindered("process", reason, clock.steady())
    health.free("requests")
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
        stdout=PIPE,
        pass_fds=(descriptor,),
        env=dict(context.environment),
        # Ctrl-C reaches the parent alone, which ends both in order. In a session of its own, Linux
        # would not compare its priority with that of the parent.
        process_group=0,
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
