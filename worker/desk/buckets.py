"""Counts by time: a span of minutes as few buckets of days, hours and minutes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

WIDTHS_MS: Final = (60_000, 3_600_000, 86_400_000)
"""The width of a bucket, by level: minutes, hours, days. Each divides the next."""


class Buckets(NamedTuple):
    """The buckets of one level from number `first` up to, not including, `end`."""

    level: int
    first: int
    end: int


def cover(since_ms: int, until_ms: int) -> Iterator[Buckets]:
    """The fewest buckets that together are exactly this span, which begins and ends with a minute.

    Raises ValueError unless both are whole minutes.
    """
    minute = WIDTHS_MS[0]
    if since_ms % minute or until_ms % minute:
        raise ValueError("a span of buckets begins and ends with a minute")
    yield from _cover(len(WIDTHS_MS) - 1, since_ms, until_ms)


def _cover(level: int, since: int, until: int) -> Iterator[Buckets]:
    if since >= until:
        return
    width = WIDTHS_MS[level]
    first, end = -(-since // width), until // width
    if first >= end:
        yield from _cover(level - 1, since, until)
        return
    if level:
        yield from _cover(level - 1, since, first * width)
    yield Buckets(level, first, end)
    if level:
        yield from _cover(level - 1, end * width, until)
