"""A sink that freezes in the middle of its work, as SIGSTOP would freeze a process.

While it is frozen no call to broker or place returns, so its membership gets no heartbeat either.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

from worker.brokers.contract import Broker
from worker.exports.places.place import ExportPlace, Finished
from worker.exports.places.staging import Staging
from worker.sink.requests import Status, decode_announcement

Stage = Literal["starting", "taken up", "written", "published", "announcing"]
STAGES: tuple[Stage, ...] = ("starting", "taken up", "written", "published", "announcing")
_ANNOUNCING: Mapping[Status, Stage] = {"started": "starting", "finished": "announcing"}
PATIENCE = 20.0


class Freezer:
    """Freezes one sink once, at a stage of its first export; for the broker and place it is given.

    Only the loop and one thread of the place are at it.
    """

    def __init__(self, stage: Stage) -> None:
        self.frozen = asyncio.Event()
        """Set once the stage has been reached; from then on nothing returns until `thaw`."""
        self._stage = stage
        self._loop = asyncio.get_running_loop()
        self._thawed = asyncio.Event()
        self._released = threading.Event()

    def thaw(self) -> None:
        """Let everything go on."""
        self._thawed.set()
        self._released.set()

    @asynccontextmanager
    async def thawed_at_last(self) -> AsyncIterator[None]:
        """Thaw at the end, so that the sink can stop whatever the test has found."""
        try:
            yield
        finally:
            self.thaw()

    async def pass_by(self) -> None:
        """Wait while frozen."""
        if self.frozen.is_set():
            await self._thawed.wait()

    async def reach(self, stage: Stage) -> None:
        """Freeze here if this is the stage."""
        if stage == self._stage:
            self.frozen.set()
        await self.pass_by()

    def reach_in_thread(self, stage: Stage) -> None:
        """The same, in a thread."""
        if stage == self._stage:
            self._loop.call_soon_threadsafe(self.frozen.set)
            assert self._released.wait(PATIENCE)

    def broker(self, broker: Broker) -> Any:
        """The same broker, as the frozen sink sees it."""
        return _Gate(broker, self)

    def place(self, place: ExportPlace) -> Any:
        """The same place, as the frozen sink sees it."""
        return _Place(place, self)


class _Gate:
    """Any object of a broker; what its coroutines return is gated, too."""

    def __init__(self, inner: Any, freezer: Freezer) -> None:
        self._inner = inner
        self._freezer = freezer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "reader":
            return lambda **more: _Gate(found(**more), self._freezer)
        if not inspect.iscoroutinefunction(found):
            return found

        async def gated(*args: Any, **more: Any) -> Any:
            if name in ("commit", "publish") and args[0]:
                said = decode_announcement(args[0][0].value)
                if said is not None and said.status in _ANNOUNCING:
                    await self._freezer.reach(_ANNOUNCING[said.status])
            await self._freezer.pass_by()
            result = await found(*args, **more)
            await self._freezer.pass_by()
            return _Gate(result, self._freezer) if name in ("join", "committer") else result

        return gated


class _Place:
    def __init__(self, inner: ExportPlace, freezer: Freezer) -> None:
        self._inner = inner
        self._freezer = freezer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def find_or_finish(self, export_id: str) -> Finished | None:
        self._freezer.reach_in_thread("taken up")
        return self._inner.find_or_finish(export_id)

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        self._freezer.reach_in_thread("written")
        found = self._inner.publish(staging, abandoned)
        self._freezer.reach_in_thread("published")
        return found
