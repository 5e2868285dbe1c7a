"""What the sink is told of exports: where they go, when, and how long they stay."""

from __future__ import annotations

import msgspec

from worker.exports.places.place import ExportPlace
from worker.sink.retention import Keep
from worker.sink.schedule import Schedule


class ExportSettings(msgspec.Struct, frozen=True):
    """Where exports go, the programme's name in them, the schedules, and the retention.

    `patience` is how long to wait for progress, in seconds.
    """

    place: ExportPlace
    program_name: str = "Buddy Program"
    patience: float = 60.0
    schedules: tuple[Schedule, ...] = ()
    keep: Keep = Keep()
