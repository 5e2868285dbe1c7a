"""Keeps the export place tidy: sweeps leftovers, and removes exports beyond the retention limits.

It also probes the place, so that an unwritable place is reported before the next export is due.

Upkeep runs when this sink becomes the leader, after each export, and once an hour. After a failure
it runs every minute, until the place is back. In between it checks the place every 8 s, at little
cost. It uses the steady clock, and runs in a task of its own, so that an unreachable place
delays no request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog

from worker.clock import Clock
from worker.errors import BuddyError
from worker.exports.places.place import ExportPlace
from worker.sink.retention import Keep, Retiring, old_of, to_remove
from worker.sink.selection.plan import moment_of

EVERY_MS: Final = 3_600_000
AGAIN_MS: Final = 60_000
"""The interval after a failure, and while exports beyond the limits are still in their grace."""
CHECK_MS: Final = 8_000
"""A bucket's server that hangs is noticed after 20 s, and is to be told within 30 s."""

_log = structlog.get_logger(__name__)


class PlaceUpkeep:
    """The upkeep of one sink. The leader calls `run_if_due` often; `close` waits for the end."""

    def __init__(
        self, place: ExportPlace, keep: Keep, clock: Clock, tell: Callable[[str | None], object]
    ) -> None:
        """`tell` gets one line when the place cannot be used, and None when it can."""
        self._place = place
        self._keep = keep
        self._clock = clock
        self._tell = tell
        self._retiring = Retiring()
        self._next: int | None = None
        self._swept: int | None = None
        """When the place was last swept and probed; None if that is due."""
        self._checked = 0
        self._task: asyncio.Task[None] | None = None

    def sweep_soon(self) -> None:
        """Make the next run sweep and probe as well: something may have been left behind."""
        self._next = self._swept = None

    def announced(self, name: str) -> None:
        """Note that the export was just announced; it may put another one beyond the limits."""
        self._retiring.announced(name, self._clock.steady())
        self._next = None

    def run_if_due(self) -> None:
        """Begin a round of upkeep if it is due and none is running."""
        if self._task is not None and not self._task.done():
            return
        now = self._clock.steady()
        if self._next is None or now >= self._next:
            self._next = now + EVERY_MS
            self._task = asyncio.create_task(self._run(self._tidy))
        elif self._swept is not None and now - self._checked >= CHECK_MS:
            self._task = asyncio.create_task(self._run(self._check))

    async def close(self) -> None:
        """Wait for the round in hand. Close the place first, since the round may wait for it."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Do a part of the upkeep. If it returns True or fails, the next round comes soon."""
        again = True
        try:
            again = await work()
        except BuddyError as error:
            _log.warning("export_upkeep_failed", error=str(error))
            self._tell(str(error))
            self._swept = None
        except Exception as error:  # noqa: BLE001 -- a defect here never ends the sink
            _log.error("export_upkeep_internal_error", kind=type(error).__name__)
        self._checked = self._clock.steady()
        if again and self._next is not None:
            self._next = self._checked + AGAIN_MS

    async def _tidy(self) -> bool:
        await self._sweep()
        again = self._keep != Keep() and await self._retire()
        self._tell(None)
        return again

    async def _check(self) -> bool:
        await asyncio.to_thread(self._place.check)
        return False

    async def _sweep(self) -> None:
        now = self._clock.steady()
        if self._swept is None or now - self._swept >= EVERY_MS:
            for leftover in await asyncio.to_thread(self._place.sweep):
                _log.warning("export_leftover_removed", name=leftover)
            await asyncio.to_thread(self._place.probe)
            self._swept = now

    async def _retire(self) -> bool:
        """Remove the exports that were beyond the limits long enough; True if others remain."""
        now = moment_of(self._clock.wall())
        beyond = await asyncio.to_thread(_beyond, self._place, self._keep, now)
        due = self._retiring.update(beyond, self._clock.steady())
        for name in due:
            await asyncio.to_thread(self._place.remove, name)
            _log.info("export_removed", name=name)
        return len(due) < len(beyond)


def _beyond(place: ExportPlace, keep: Keep, now: datetime) -> list[str]:
    """The names of the exports beyond the limits. Blocking."""
    there = (old_of(found, now) for found in place.finished())
    return to_remove([old for old in there if old is not None], keep, now)
