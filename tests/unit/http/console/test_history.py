"""What the console shows of the last hour."""

from __future__ import annotations

import pytest

from schemas import ENTITIES
from worker.http.console.history import (
    COLUMNS,
    SAMPLE_SECONDS,
    WINDOWS,
    History,
    HistoryColumn,
    Sample,
    sample_of,
)
from worker.status.report import Figures, Report

START = 1_764_547_200.0
"""A whole hour."""


def sample(at: float, count: int | None = 0, *, waiting: int = 0) -> Sample:
    """A sample so many seconds after START; of all counts, half are rejected."""
    half = None if count is None else count // 2
    return Sample(START + at, count, half, half, waiting, waiting)


def steady(seconds: int, rate: int) -> History:
    """Samples of records that come at one rate, up to this many seconds after START."""
    history = History()
    for i in range(int(seconds / SAMPLE_SECONDS) + 1):
        history.add(sample(i * SAMPLE_SECONDS, int(i * SAMPLE_SECONDS * rate)))
    return history


def test_nothing_is_known_before_the_first_sample() -> None:
    window = History().window(START)
    assert (window.seconds, window.since) == (WINDOWS[0], None)
    assert window.columns == [HistoryColumn()] * COLUMNS
    assert window.now == HistoryColumn()


def test_one_sample_tells_what_waits_and_no_rate() -> None:
    history = History()
    history.add(sample(0, 1_000, waiting=7))
    window = history.window(START + 1)
    assert window.now == HistoryColumn(parked=7, lag=7)
    assert window.columns == [HistoryColumn()] * COLUMNS


def test_rates_are_records_a_second() -> None:
    window = steady(120, 40).window(START + 120)
    known = [column for column in window.columns if column.arrived is not None]
    assert {column.arrived for column in known} == {40.0}
    assert {column.rejected for column in known} == {20.0}
    assert window.now.arrived == 40.0


@pytest.mark.parametrize(
    ("age", "seconds"), [(60, 600), (600, 600), (605, 1_800), (1_805, 3_600), (4_000, 3_600)]
)
def test_the_window_grows_with_what_is_known_up_to_an_hour(age: int, seconds: int) -> None:
    window = steady(age, 1).window(START + age)
    assert window.seconds == seconds
    assert len(window.columns) == COLUMNS


def test_after_an_hour_every_column_is_known_and_nothing_older_is_kept() -> None:
    window = steady(2 * 3_600, 3).window(START + 2 * 3_600)
    assert {column.arrived for column in window.columns} == {3.0}
    assert window.since is not None
    assert window.since > START + 3_600 - SAMPLE_SECONDS


def test_a_time_without_samples_is_a_gap() -> None:
    history = steady(100, 1)
    history.add(sample(400, 400))
    window = history.window(START + 400)
    assert [column.arrived for column in window.columns[-10:]] == [None] * 9 + [1.0]


def test_what_is_old_is_not_now() -> None:
    assert steady(100, 1).window(START + 130).now == HistoryColumn()


def test_a_count_that_is_unknown_gives_no_rate() -> None:
    history = History()
    history.add(sample(0, None))
    history.add(sample(5, 100))
    assert history.window(START + 5).now.arrived is None


def test_a_count_that_falls_is_of_topics_that_were_made_anew() -> None:
    history = History()
    history.add(sample(0, 100))
    history.add(sample(5, 10))
    assert history.window(START + 5).now.arrived == 0.0


def test_a_clock_that_is_set_back_forgets_what_came_later() -> None:
    history = steady(100, 1)
    history.add(sample(50, 200))
    history.add(sample(55, 205))
    window = history.window(START + 55)
    assert window.now.arrived is not None
    assert max(c.arrived for c in window.columns if c.arrived is not None) > 1.0


def test_a_sample_adds_up_the_figures_of_all_entities() -> None:
    figures = Figures(read=10, accepted=6, deleted=1, rejected=2, parked=1, lag=5, blocked=0)
    found = sample_of(report(dict.fromkeys(ENTITIES, figures)), START, ())
    count = len(ENTITIES)
    assert found == Sample(START, 15 * count, 7 * count, 2 * count, count, 5 * count)


def test_one_unknown_figure_makes_the_sum_unknown() -> None:
    known = Figures(read=10, accepted=6, deleted=1, rejected=2, parked=1, lag=5, blocked=0)
    unknown = Figures(None, None, None, None, None, lag=5, blocked=0)
    found = sample_of(report({"users": known, "matches": unknown}), START, ())
    assert found == Sample(START, None, None, None, None, 10)


def report(entities: dict[str, Figures]) -> Report:
    return Report(
        entities=entities,
        tasks=[],
        workers=[],
        sinks=None,
        oldest_parked=None,
        incidents={},
        skipped={},
        unreadable_progress=0,
        lag_is_exact=True,
    )
