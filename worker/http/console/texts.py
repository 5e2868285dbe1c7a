"""Numbers, sizes and times as people read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from worker.core.shown import shown
from worker.desk.answers import moment

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_MINUTE: Final = 60
_HOUR: Final = 3_600
_DAY: Final = 86_400


def number(value: float) -> str:
    """`12,345`; small fractions have one digit."""
    return f"{value:,.1f}" if 0 < value < 10 and value != int(value) else f"{value:,.0f}"


def tasks(numbers: Sequence[int]) -> str:
    """`task 0`, `tasks 0 to 3`, `tasks 0, 2`; the numbers rise."""
    first, last = numbers[0], numbers[-1]
    if first == last:
        return f"task {first}"
    if last - first + 1 == len(numbers) > 2:
        return f"tasks {first} to {last}"
    return f"tasks {', '.join(map(str, numbers))}"


def size(count: int) -> str:
    """`342.9 kB`, in powers of 1,000."""
    value, unit = float(count), 0
    while value >= 999.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1_000, unit + 1
    return f"{count} B" if not unit else f"{value:,.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """`12 ms`, `1.2 s`, `3 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < _HOUR else f"{seconds / _HOUR:.1f} h"


def percent(share: float) -> str:
    """`3.2 %`, `31 %`."""
    return f"{100 * share:.0f} %" if share >= 0.1 or not share else f"{100 * share:.1f} %"


def as_time(value: float | str | datetime) -> datetime:
    """A moment given in milliseconds since 1970, as ISO 8601, or as it is; in UTC."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.astimezone(UTC) if isinstance(value, datetime) else moment(int(value))


def iso(at: datetime) -> str:
    """A moment for programs, to the second."""
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def clock(at: datetime) -> str:
    """A moment of today to the minute: `11:53`."""
    return f"{at:%H:%M}"


def relative(at: datetime, now: datetime) -> str:
    """`12 s ago`, `3 min ago`, `in 2 h`; beyond a day the date."""
    seconds = (now - at).total_seconds()
    away = abs(seconds)
    if away < 2:
        return "now"
    if away >= _DAY:
        return f"{at:%Y-%m-%d}"
    if away < _MINUTE:
        text = f"{away:.0f} s"
    else:
        text = f"{away // _MINUTE:.0f} min" if away < _HOUR else f"{away // _HOUR:.0f} h"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def clipped(text: str, longest: int = 200) -> str:
    """Foreign text, of bounded length, without characters that do not print."""
    return shown(text, longest)
