"""Spans of minutes as buckets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.desk.buckets import WIDTHS_MS, cover

MINUTE = WIDTHS_MS[0]
minutes = st.integers(0, 100 * 24 * 60)


@given(minutes, minutes)
def test_buckets_cover_each_minute_of_a_span_once(first: int, end: int) -> None:
    found: list[tuple[int, int]] = []
    for level, low, high in cover(first * MINUTE, end * MINUTE):
        width = WIDTHS_MS[level]
        found += [(bucket * width, (bucket + 1) * width) for bucket in range(low, high)]
    found.sort()
    if first >= end:
        assert found == []
    else:
        assert found[0][0] == first * MINUTE
        assert found[-1][1] == end * MINUTE
        assert all(one[1] == other[0] for one, other in pairwise(found))


@given(minutes, minutes)
def test_few_buckets_suffice(first: int, end: int) -> None:
    levels = list(cover(first * MINUTE, end * MINUTE))
    assert sum(high - low for level, low, high in levels if level == 0) <= 2 * 59
    assert sum(high - low for level, low, high in levels if level == 1) <= 2 * 23


@pytest.mark.parametrize("span", [(1, MINUTE), (0, MINUTE + 1)])
def test_a_span_has_whole_minutes(span: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="begins and ends with a minute"):
        list(cover(*span))
