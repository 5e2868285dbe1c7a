"""How far an export is, told by what lies on the disk; and stepping a sink up to there.

A sink is stepped by signals: it runs for a moment, is stopped, looked at, and goes on. So the
shortest of stages, between the manifest's last byte and the renaming, is hit as surely as a long
one, and whoever lists the exports directory sees it at each of these moments.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final

from tests.acceptance.kit import Service

_SLICE: Final = 0.0005
"""Seconds that a sink runs between two looks."""
_LIMIT: Final = 60.0
"""Seconds until an export must be finished; it takes one or two."""


class Stage(IntEnum):
    """In the order in which an export goes through them."""

    WAITING = 0
    CUT = 1
    COLLECT = 2
    CSV = 3
    JSON = 4
    XLSX = 5
    MANIFEST = 6
    RENAMED = 7
    ANNOUNCED = 8


TARGETS: Final = tuple(Stage)[1:]


class Place:
    """Where the sink writes, and what of it is there now."""

    def __init__(self, exports: Path, store: Path) -> None:
        self._exports = exports
        self._spool = store / "spool"

    def visible(self) -> list[Path]:
        """What anybody takes for a finished export."""
        return sorted(p for p in _entries(self._exports) if not p.name.startswith("."))

    def leftovers(self) -> list[Path]:
        """What is neither finished nor meant to stay: unfinished exports, spooled rows."""
        return self._unfinished() + _entries(self._spool)

    def _unfinished(self) -> list[Path]:
        return [path for path in _entries(self._exports) if path.name.endswith(".partial")]

    def stage(self, service: Service, request: str, export_id: str) -> Stage:
        """How far this life of the sink has brought the export."""
        if any(path.name.endswith(export_id) for path in self.visible()):
            finished = service.logged("export_finished")
            announced = any(event["request"] == request for event in finished)
            return Stage.ANNOUNCED if announced else Stage.RENAMED
        # Between sealing and renaming it lies in `.seals`, whole: as before, its manifest is there.
        names = [file.name for p in _entries(self._exports) for file in p.rglob("*")]
        if "manifest.json" in names:
            return Stage.MANIFEST
        for suffix, stage in ((".xlsx", Stage.XLSX), (".json", Stage.JSON)):
            if any(n.startswith("buddy_export_") and n.endswith(suffix) for n in names):
                return stage
        if self._unfinished():
            return Stage.CSV
        if _entries(self._spool):
            return Stage.COLLECT
        started = any(event["request"] == request for event in service.logged("export_started"))
        return Stage.CUT if started else Stage.WAITING


def step(service: Service, look: Callable[[], bool]) -> None:
    """Run the sink moment by moment until `look`, called while it stands still, says enough.

    It is left standing. AssertionError when it ends by itself or takes too long.
    """
    deadline = time.monotonic() + _LIMIT
    while True:
        service.freeze()
        if look():
            return
        assert time.monotonic() < deadline, f"the export does not come to an end\n{service}"
        service.send(signal.SIGCONT)
        time.sleep(_SLICE)


def _entries(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []
