"""Running services until a signal: the first lets them finish, the second ends at once.

SIGHUP says that the terminal has gone. Where it is ignored from the start (nohup), it stays so.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

_COLLECT_AFTER: Final = 100_000
"""So many containers more, and the garbage collector looks for cycles. A round makes some ten
thousand that live until it is committed: at Python's 700 the search took a sixth of all time."""

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

    gc.freeze()  # what was imported stays for good
    gc.set_threshold(_COLLECT_AFTER)
    asyncio.run(run())
    return 0


def _unheard(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exceptions of abandoned futures: aiokafka leaves some behind in an outage."""
    error = context.get("exception")
    _log.debug("unheard_exception", error=type(error).__name__ if error else "")


def stop_at_eof(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: when whoever started us has gone, however that was."""
    loop = asyncio.get_running_loop()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    try:
        loop.add_reader(0, on_input)
    except PermissionError:  # no pipe and no terminal: nobody is behind it
        stop.set()


async def together(stop: asyncio.Event, *services: Coroutine[Any, Any, None]) -> None:
    """Run services side by side; when one ends or fails, the others are told to stop.

    Raises what the first one raised.
    """
    tasks = [asyncio.ensure_future(service) for service in services]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
