"""How people and programs name rejections: by coordinate, and by time. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from schemas import ENTITIES
from worker.core.topics import Names
from worker.errors import UsageError

UNITS_MS: Final = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
"""The units of a time back from now."""

_COORDINATE: Final = re.compile(
    rf"(?:(.+)\.)?(in|rejected)\.({'|'.join(ENTITIES)})/([0-9]{{1,6}})/([0-9]{{1,18}})"
)
_MOMENT: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2})?Z")


def read_coordinate(names: Names, text: str) -> str:
    """The coordinate of a record or of a rejection, with the prefix. Raises UsageError."""
    found = _COORDINATE.fullmatch(text)
    if found is None or found[1] not in (None, names.prefix):
        raise UsageError(
            f"{text!r} is no coordinate: say TOPIC/PARTITION/OFFSET of an input or of a "
            f"topic of rejections with prefix {names.prefix}, such as in.users/3/17"
        )
    _, kind, entity, partition, offset = found.groups()
    return f"{names.prefix}.{kind}.{entity}/{int(partition)}/{int(offset)}"


def moment_named(text: str, now: int) -> int | None:
    """The moment of a time back from now (`30m`, `2h`, `7d`) or in UTC (`2026-11-29T11:53Z`).

    In milliseconds since 1970, as `now`; None for any other text.
    """
    if back := re.fullmatch(r"([0-9]{1,5})([mhd])", text):
        return now - int(back[1]) * UNITS_MS[back[2]]
    if not _MOMENT.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text).timestamp()) * 1_000
    except ValueError:  # a month 13, say
        return None
