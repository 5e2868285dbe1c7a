"""What keeps a service from a part of its work, and for how long that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from worker.ops.health import ServiceHealth

STEADY_MS: Final = 5_000
"""A hindrance ends only after work that has gone well for so long: failures often repeat, after
pauses of up to five seconds in which other work goes well."""


class SteadyHealth:
    """Reports failures of parts of the work to `health`. `clock` is steady, in milliseconds."""

    def __init__(self, health: ServiceHealth, clock: Callable[[], int]) -> None:
        self._health = health
        self._clock = clock
        self._well_since: dict[str, int | None] = {}
        """By hindered part: when it first went well after the last failure; None if never."""

    def hindered(self, what: str, reason: str) -> None:
        """Report a failure, in one line: not ready until `free`."""
        self._well_since[what] = None
        self._health.hindered(what, reason, self._clock())

    def free(self, what: str, after: int = STEADY_MS) -> None:
        """Report success, each time; effective once it has gone well for `after` ms."""
        if what not in self._well_since:
            return
        now = self._clock()
        since = self._well_since[what]
        if since is None:
            since = self._well_since[what] = now
        if now - since >= after:
            del self._well_since[what]
            self._health.free(what)
