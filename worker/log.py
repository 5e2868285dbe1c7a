"""Logs: structlog, for people on a terminal and as JSON elsewhere.

Every line has an action for its event. Ids, codes and coordinates only, never personal data.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog


def configure(level: str, stream: TextIO | None = None) -> None:
    """Write log lines of that level and above to the stream (standard error)."""
    to_stderr(level, stream)
    logging.basicConfig(stream=stream or sys.stderr, force=True)
    silence_libraries()


def to_stderr(level: str, stream: TextIO | None = None) -> None:
    """The same for our own lines alone: standard output is for what a command prints."""
    people = (stream or sys.stderr).isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        # Whatever standard error is when a line is written.
        logger_factory=lambda *_: structlog.PrintLogger(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def silence_libraries() -> None:
    """Let nothing through that libraries log: their errors are ours to word, in one line.

    aiokafka logs each attempt of each connection, asyncio every future of an abandoned client.
    Without this they would print to standard error, before our own line.
    """
    logging.getLogger().setLevel(logging.CRITICAL)
