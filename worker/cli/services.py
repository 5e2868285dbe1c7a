"""Runs services until a signal: the first lets them finish, the second ends the process at once.

SIGHUP means that the terminal is gone. If SIGHUP is ignored from the start (nohup), it stays
ignored.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

_COLLECT_AFTER: Final = 100_000
"""Number of new containers after which the garbage collector searches for cycles. A round creates
some ten thousand, which live until its commit. At Python's 700, the search took a sixth of all
time."""

_PR_SET_PDEATHSIG: Final = 1
"""From <linux/prctl.h>."""

_log = structlog.get_logger(__name__)


def serve(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run `main(stop)`; SIGTERM, SIGINT and SIGHUP set `stop`. Returns exit code 0."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_unheard)

        def on_signal(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            _log.info("stopping", signal=signal.Signals(number).name)
            stop.set()

        ended_by = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            ended_by.append(signal.SIGHUP)
        for number in ended_by:
            loop.add_signal_handler(number, on_signal, number)
        await main(stop)

    gc.freeze()  # imported objects live until the end
    gc.set_threshold(_COLLECT_AFTER)
    asyncio.run(run())
    return 0


def _unheard(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log exceptions of abandoned futures at debug level: aiokafka abandons some in an outage."""
    error = context.get("exception")
    _log.debug("unheard_exception", error=type(error).__name__ if error else "")


def end_with_parent(stop: asyncio.Event) -> None:
    """End when the parent process is gone, for any reason.

    Linux then kills this process at once, even a frozen one, which would keep its port. Elsewhere
    it notices that standard input ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    stop_at_eof(stop)


def stop_at_eof(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: then the parent process is gone, for any reason."""
    loop = asyncio.get_running_loop()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    try:
        loop.add_reader(0, on_input)
    except PermissionError:  # neither pipe nor terminal: no process is behind it
        stop.set()
