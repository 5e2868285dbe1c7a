"""Logs: structlog, for people on a terminal and as JSON elsewhere.

Every line has an action for its event. Ids, codes and coordinates only, never personal data.
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
    """Write log lines of that level and above to the stream (standard error)."""
    to_stderr(level, stream)
    logging.basicConfig(stream=stream or sys.stderr, force=True)
    silence_libraries()


def to_stderr(level: str, stream: TextIO | None = None) -> None:
    """The same for our own lines alone: standard output is for what a command prints."""
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
        # Whatever standard error is when a line is written.
        logger_factory=lambda *_: structlog.PrintLogger(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def _without_escapes(_logger: object, _method: str, event: EventDict) -> EventDict:
    """No text of a broker or of a file's name does anything to the terminal but stand there."""
    return {name: shown(v) if isinstance(v, str) else v for name, v in event.items()}


def silence_libraries() -> None:
    """Let nothing through that libraries log: their errors are ours to word, in one line.

    aiokafka logs each attempt of each connection, asyncio every future of an abandoned client.
    Without this they would print to standard error, before our own line.
    """
    logging.getLogger().setLevel(logging.CRITICAL)


class Sparing:
    """Tells of what may happen very often: each of the first ten, then a sum once a minute."""

    def __init__(
        self, say: Callable[..., object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`say` logs the event, with the fields that it is given."""
        self._say = say
        self._clock = clock
        self._named = 0
        self._untold = 0
        self._latest: Mapping[str, object] = {}
        self._told_at = clock()

    def tell(self, happened: Sequence[Mapping[str, object]]) -> None:
        """It happened so often, each time with these fields: coordinates and reasons, no data."""
        for fields in happened:
            if self._named < _NAMED:
                self._named += 1
                self._told_at = self._clock()
                self._say(count=1, **fields)
            else:
                self._untold += 1
                self._latest = fields
        if self._untold and self._clock() - self._told_at >= _SUM_SECONDS:
            self.rest()

    def rest(self) -> None:
        """Tell how often it happened since the last line, with the fields of the last time."""
        if self._untold:
            self._say(count=self._untold, **self._latest)
            self._untold = 0
            self._told_at = self._clock()
