"""The time to a verdict, from the histogram of the services."""

from __future__ import annotations

from math import inf

import pytest

from worker.http.console.latency import LatencyBucket, added, between, buckets_of, quantile
from worker.ops.metrics import Metrics

BOUNDS = (0.1, 1.0, inf)


def buckets(*verdicts: float) -> tuple[LatencyBucket, ...]:
    return tuple(map(LatencyBucket, BOUNDS, verdicts))


def test_the_histogram_stands_in_the_metrics_of_a_process() -> None:
    from prometheus_client import generate_latest

    found = buckets_of(generate_latest(Metrics().registry))
    assert found[-1] == (inf, 0.0)
    assert [one.seconds for one in found] == sorted({one.seconds for one in found})


def test_a_page_without_it_has_none() -> None:
    assert buckets_of(b"") == ()
    assert buckets_of(b"buddy_rounds_total 3.0\n") == ()


def test_large_counts_are_read() -> None:
    line = b'buddy_verdict_seconds_bucket{le="0.5"} 1.2e+07\n'
    assert buckets_of(line) == (LatencyBucket(0.5, 12_000_000.0),)


@pytest.mark.parametrize(("share", "seconds"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.55), (1.0, 1.0)])
def test_a_quantile_is_interpolated_within_its_bucket(share: float, seconds: float) -> None:
    assert quantile(buckets(10, 20, 20), share) == pytest.approx(seconds)


def test_beyond_the_last_bound_the_bound_is_told() -> None:
    assert quantile(buckets(0, 1, 10), 0.99) == 1.0


@pytest.mark.parametrize("none", [(), buckets(0, 0, 0)])
def test_without_verdicts_there_is_no_quantile(none: tuple[LatencyBucket, ...]) -> None:
    assert quantile(none, 0.5) is None


def test_what_came_between_two_histograms() -> None:
    assert between(buckets(1, 2, 3), buckets(2, 4, 8)) == buckets(1, 2, 5)


def test_a_process_that_began_anew_has_nothing_in_common_with_the_one_before() -> None:
    assert between(buckets(5, 5, 5), buckets(1, 1, 1)) == ()
    assert between((), buckets(1, 1, 1)) == ()


def test_histograms_add_up() -> None:
    assert added(buckets(1, 2, 3), buckets(1, 1, 1)) == buckets(2, 3, 4)
    assert added((), buckets(1, 1, 1)) == buckets(1, 1, 1)
    assert added(buckets(1, 1, 1), ()) == buckets(1, 1, 1)
