"""What the workers log: part of the trace of a run, or nothing at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog

from tests.proofs.simulation.loop import running


@contextmanager
def logging_to(trace: Callable[[str], None] | None) -> Iterator[None]:
    """As long as this lasts all log lines go there."""

    def tell(_logger: object, level: str, line: MutableMapping[str, Any]) -> str:
        assert trace is not None
        trace(f"  {running()}: {level} {line.pop('event')} {line}")
        raise structlog.DropEvent

    if trace is None:
        quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(wrapper_class=quiet)
    else:
        structlog.configure(processors=[tell])
    try:
        yield
    finally:
        structlog.reset_defaults()
