"""Watches whether finished exports can be read, also while nobody asks for them."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from worker.errors import StateError
from worker.exports.places.place import ExportPlace
from worker.http.broker_watch import BrokerWatch
from worker.waiting import wait

_LOOK_SECONDS: Final = 5.0
"""A bucket's server that hangs is noticed after 20 s, and is to be told within 30 s."""
_NO_EXPORT: Final = "19700101T000000Z_00000000-0000-4000-8000-000000000000"
"""To look for it is the cheapest read, and needs no more rights than a download."""

_log = structlog.get_logger(__name__)


class PlaceWatch:
    """Looks for finished exports every few seconds, and tells a `BrokerWatch` what it finds.

    A directory that was never there is no fault: the first export creates it.
    """

    def __init__(self, place: ExportPlace, watch: BrokerWatch) -> None:
        self._place = place
        self._watch = watch
        self._away = False

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set. A look that hangs is left to its thread."""
        looking = asyncio.create_task(self._look())
        while not stop.is_set():
            await wait(stop, _LOOK_SECONDS)
            if looking.done():
                self._tell(looking.result())
                looking = asyncio.create_task(self._look())
            elif hangs := self._place.hang():
                self._tell(hangs)
        looking.cancel()

    async def _look(self) -> str | None:
        """What keeps the API from reading exports, in one line."""
        try:
            await asyncio.to_thread(self._place.find, _NO_EXPORT)
        except StateError as error:
            return str(error)
        return None

    def _tell(self, away: str | None) -> None:
        if away is not None:
            self._watch.not_followed("exports", away)
        else:
            self._watch.followed("exports")
        if self._away != (away is not None):
            self._away = not self._away
            if away is not None:
                _log.warning("exports_not_read", error=away)
            else:
                _log.info("exports_read_again")
