"""Charts as paths."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from worker.http.console import charts

VALUES = st.lists(st.none() | st.floats(0, 1e9), max_size=charts.WIDTH)


def test_a_line_is_made_of_level_steps_and_has_a_gap_where_nothing_is_known() -> None:
    assert charts.line([10, 5, None, 10], 10) == "M0 0H1V10H2M3 0H4"


def test_an_area_reaches_down_to_the_ground() -> None:
    assert charts.area([10, None, 5], 10) == "M0 20V0H1V20ZM2 20V10H3V20Z"


def test_there_is_no_bar_for_zero_and_a_small_one_is_seen() -> None:
    assert charts.bars([0, 1, 1_000], 1_000) == "M1.1 20V19.4H1.9V20ZM2.1 20V0H2.9V20Z"


def test_without_values_there_is_nothing_to_draw() -> None:
    assert charts.top_of([None], []) == 0.0
    assert charts.line([None, None], 0.0) == ""
    assert charts.area([], 0.0) == ""
    assert charts.line([0.0], 0.0) == "M0 20H1"


@given(VALUES)
def test_a_chart_never_leaves_its_place(values: list[float | None]) -> None:
    top = charts.top_of(values)
    for path in (charts.line(values, top), charts.area(values, top)):
        assert re.fullmatch(r"[MHVZ0-9. ]*", path)
        for command, number in re.findall(r"([HV])([0-9.]+)", path):
            assert 0 <= float(number) <= (charts.WIDTH if command == "H" else charts.HEIGHT)
