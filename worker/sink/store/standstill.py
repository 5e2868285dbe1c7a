"""Why the accepted topics cannot be read to their ends, in one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from worker.stream import Partition

_MOST_NAMED: Final = 3


def standstill(missing: Mapping[Partition, int], damaged: Mapping[Partition, str]) -> str:
    """Name the partitions of which messages are missing, and say what to do.

    `damaged` has a line about each damaged partition, missing or not.
    """
    behind = sorted(missing)
    places = ", ".join(f"{topic}/{number}" for topic, number in behind[:_MOST_NAMED])
    if len(behind) > _MOST_NAMED:
        places += f" and {len(behind) - _MOST_NAMED} more"
    lines = [damaged[partition] for partition in behind if partition in damaged]
    why = "; ".join(lines[:_MOST_NAMED]) or (
        "a transaction may be open there, see input_blocked in docs/operations/troubleshooting.md"
    )
    return f"{sum(missing.values())} messages of {places} are missing: {why}"
