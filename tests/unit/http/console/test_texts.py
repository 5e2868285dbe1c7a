"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from worker.http.console import texts

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.2"), (7.0, "7"), (9.96, "10.0"), (12_345.6, "12,346")],
)
def test_numbers(value: float, text: str) -> None:
    assert texts.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert texts.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0124, "12 ms"), (1.25, "1.2 s"), (180, "3 min"), (5_400, "1.5 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert texts.duration(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.032, "3.2 %"), (0.314, "31 %")])
def test_shares(share: float, text: str) -> None:
    assert texts.percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (12, "12 s ago"),
        (59.4, "59 s ago"),
        (119, "1 min ago"),
        (7_300, "2 h ago"),
        (86_400, "2026-11-28"),
        (-7_300, "in 2 h"),
    ],
)
def test_relative_times(seconds: float, text: str) -> None:
    assert texts.relative(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize("value", [1_795_953_600_000, "2026-11-29T12:00:00Z", NOW])
def test_a_moment_may_come_in_any_form(value: float | str | datetime) -> None:
    assert texts.iso(texts.as_time(value)) == "2026-11-29T12:00:00Z"


def test_foreign_text_is_bounded_and_printable() -> None:
    assert texts.clipped("a" * 300, 10) == "a" * 9 + "…"
    assert texts.clipped("a\x1b\u202e") == "a\\x1b\\u202e"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([4], "task 4"), ([0, 1], "tasks 0, 1"), ([1, 2, 3], "tasks 1 to 3"), ([0, 2], "tasks 0, 2")],
)
def test_tasks_are_named_in_few_words(numbers: list[int], text: str) -> None:
    assert texts.tasks(numbers) == text
