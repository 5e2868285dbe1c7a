"""Logs with structlog: for people on a terminal, as JSON elsewhere.

The event of every line is the name of an action. Ids, codes and coordinates only, never personal
data.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict

from worker.core.shown import shown

_NAMED: Final = 10
_SUM_SECONDS: Final = 60.0


def configure(level: str, stream: TextIO | None = None) -> None:
    """Write log lines of that level and above to `stream`, by default standard error."""
    to_stderr(level, stream)
    logging.basicConfig(stream=stream or sys.stderr, force=True)
    silence_libraries()


def to_stderr(level: str, stream: TextIO | None = None) -> None:
    """As `configure`, for our own lines alone. Standard output is for the results of commands."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    people = (stream or sys.stderr).isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(
                [_without_escapes, structlog.dev.ConsoleRenderer(colors=not plain)]
                if people
                else [structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        # Looked up for each line, since standard error may have been replaced.
        logger_factory=lambda *_: structlog.PrintLogger(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _without_escapes(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Escape texts, so that those from brokers and file names cannot control the terminal."""
    return {name: shown(v) if isinstance(v, str) else v for name, v in event.items()}


def silence_libraries() -> None:
    """Suppress the logs of libraries: we report their errors ourselves, in one line.

    aiokafka logs each attempt of each connection, asyncio every future of an abandoned client.
    Otherwise they would print to standard error before our own line.
    """
    logging.getLogger().setLevel(logging.CRITICAL)


class Sparing:
    """Logs a frequent event: each of the first ten times, then a sum once a minute."""

    def __init__(
        self, say: Callable[..., object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` logs the event with the fields passed to it."""
        self._say = say
        self._clock = clock
        self._named = 0
        self._untold = 0
        self._latest: Mapping[str, object] = {}
        self._told_at = clock()

    def warn(self, happened: Sequence[Mapping[str, object]]) -> None:
        """Log occurrences, each by its fields: coordinates and reasons, no data."""
        for fields in happened:
            if self._named < _NAMED:
                self._named += 1
                self._told_at = self._clock()
                self._say(count=1, **fields)
            else:
                self._untold += 1
                self._latest = fields
        if self._untold and self._clock() - self._told_at >= _SUM_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Log the number of occurrences not logged yet, with the fields of the last one."""
        if self._untold:
            self._say(count=self._untold, **self._latest)
            self._untold = 0
            self._told_at = self._clock()
