"""Incidents: streams of known shares, in time that is counted in buckets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from math import exp, lgamma, log
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.desk.detection import (
    BUCKET_MS,
    Incident,
    IncidentClosed,
    IncidentOpened,
    Past,
    Verdicts,
    Watch,
    advance,
    opens_at,
)

pytestmark = pytest.mark.thorough

MINUTE = 60_000 // BUCKET_MS
HOUR = 60 * MINUTE
FIRST = 300_000_000
EMPTY = Verdicts(0, 0)


@cache
def poisson(mean: float) -> tuple[range, list[float]]:
    """Counts, and how often each or less occurs, for `Random.choices`."""
    counts = range(max(0, int(mean - 9 * mean**0.5)), int(mean + 10 * mean**0.5 + 20))
    weights = [exp(k * log(mean) - mean - lgamma(k + 1)) if mean else k == 0 for k in counts]
    return counts, list(accumulate(weights))


def stream(seed: int, rate: float, share: float, buckets: int) -> list[Verdicts]:
    """Independent records: `rate` a second, `share` of them bad."""
    random, per_bucket = Random(seed), rate * BUCKET_MS / 1_000
    drawn = []
    for mean in (per_bucket * (1 - share), per_bucket * share):
        counts, weights = poisson(mean)
        drawn.append(random.choices(counts, cum_weights=weights, k=buckets))
    return [Verdicts(*both) for both in zip(*drawn, strict=True)]


def settled(rate: float, share: float) -> Watch:
    """An entity that has had this rate and share for days."""
    records = max(1.0, rate * BUCKET_MS / 1_000) * 6 * HOUR / log(2)
    past = Past(records * (1 - share), records * share, records * share * (1 - share))
    return Watch(FIRST - 1, past=past)


def run(
    watch: Watch, buckets: Iterable[Verdicts]
) -> tuple[Watch, list[IncidentOpened | IncidentClosed]]:
    events: list[IncidentOpened | IncidentClosed] = []
    for number, verdicts in enumerate(buckets, watch.bucket + 1):
        watch, found = advance(watch, number, verdicts)
        events += found
    return watch, events


def kinds(events: Iterable[IncidentOpened | IncidentClosed]) -> list[type]:
    return [type(event) for event in events]


def open_incident(watch: Watch) -> Incident:
    assert watch.incident is not None
    return watch.incident


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.03, 0.1, 0.2, 0.4])
def test_noise_around_a_constant_share_opens_nothing_in_two_hours(share: float) -> None:
    for seed, rate in enumerate((1, 3, 10, 100, 1_000)):
        assert run(settled(rate, share), stream(seed, rate, share, 2 * HOUR))[1] == [], rate


def test_a_change_from_1_to_10_percent_at_100_a_second_opens_within_15_s_and_closes_once() -> None:
    for seed in range(200):
        watch, events = run(settled(100, 0.01), stream(seed, 100, 0.01, MINUTE))
        assert events == []
        into = seed / 200  # the change comes anywhere within a bucket
        mixed = 0.01 + 0.09 * (1 - into)
        changed_at = (watch.bucket + 1 + into) * BUCKET_MS
        rising = [*stream(seed, 100, mixed, 1), *stream(seed + 1_000, 100, 0.1, 2 * MINUTE)]
        watch, events = run(watch, rising)
        assert kinds(events) == [IncidentOpened], seed
        assert events[0].incident.opened - changed_at <= 15_000
        assert abs(events[0].incident.since - changed_at) <= 15_000
        watch, events = run(watch, stream(seed + 2_000, 100, 0.01, 5 * MINUTE))
        assert kinds(events) == [IncidentClosed], seed


@pytest.mark.parametrize(
    ("rate", "usual", "share", "minutes"),
    [
        (0.2, 0.001, 1.0, 2),
        (0.2, 0.05, 1.0, 4),
        (1, 0.01, 0.3, 3),
        (1, 0.01, 0.1, 8),
        (10, 0.01, 0.1, 1),
        (10, 0.3, 0.9, 1),
        (1_000, 0.01, 0.05, 1),
    ],
)
def test_a_slower_stream_or_a_smaller_change_takes_minutes(
    rate: float, usual: float, share: float, minutes: int
) -> None:
    for seed in range(10):
        watch, events = run(settled(rate, usual), stream(seed, rate, usual, 10 * MINUTE))
        assert events == []
        watch, events = run(watch, stream(seed + 100, rate, share, minutes * MINUTE))
        assert kinds(events) == [IncidentOpened], seed
        watch, events = run(watch, stream(seed + 200, rate, usual, 25 * MINUTE))
        assert kinds(events) == [IncidentClosed], seed


@pytest.mark.parametrize("rate", [1, 10, 100])
@pytest.mark.parametrize("of_threshold", [0.8, 1, 1.2])
def test_a_share_around_the_threshold_does_not_flap(rate: float, of_threshold: float) -> None:
    share = of_threshold * opens_at(0.01)
    for seed in range(3):
        _, events = run(settled(rate, 0.01), stream(seed, rate, share, HOUR))
        assert kinds(events) in ([], [IncidentOpened], [IncidentOpened, IncidentClosed]), seed


def test_a_share_that_alternates_every_30_s_is_one_incident() -> None:
    for seed in range(5):
        watch = settled(100, 0.01)
        events: list[IncidentOpened | IncidentClosed] = []
        for half in range(120):
            share = 0.01 if half % 2 else 0.1
            watch, found = run(watch, stream(seed * 1_000 + half, 100, share, MINUTE // 2))
            events += found
        assert kinds(events) == [IncidentOpened], seed


@pytest.mark.parametrize(("rate", "share"), [(0.2, 0.01), (1, 0.01), (100, 0.01), (1_000, 0.03)])
@pytest.mark.parametrize("halves", [(20, 0), (10, 10), (1, 19)])
def test_a_faulty_file_of_20_is_no_incident(
    rate: float, share: float, halves: tuple[int, int]
) -> None:
    for seed in range(5):
        buckets = stream(seed, rate, share, 12 * MINUTE)
        for at, bad in enumerate(halves, MINUTE):
            buckets[at] = Verdicts(buckets[at].accepted, buckets[at].rejected + bad)
        assert run(settled(rate, share), buckets)[1] == [], seed


def test_a_file_of_30_is_an_incident_in_a_slow_clean_stream() -> None:
    quiet = stream(1, 1, 0, MINUTE)
    for bad, expected in ((29, []), (30, [IncidentOpened])):
        assert kinds(run(settled(1, 0.001), [*quiet, Verdicts(0, bad)])[1]) == expected


def clumped(seed: int, rate: float, share: float, size: int, buckets: int) -> list[Verdicts]:
    records = stream(seed, rate, share / size, buckets)
    return [Verdicts(accepted, size * clumps) for accepted, clumps in records]


def test_a_stream_whose_rejections_always_come_in_clumps_learns_that() -> None:
    for seed in range(3):
        watch, _ = run(Watch(FIRST), clumped(seed, 10, 0.02, 10, HOUR))
        assert 8 < watch.past.clump < 12
        watch, events = run(watch, clumped(seed + 10, 10, 0.02, 10, 3 * HOUR))
        assert events == [], seed
        _, events = run(watch, clumped(seed + 20, 10, 0.3, 10, 5 * MINUTE))
        assert kinds(events) == [IncidentOpened], seed


@pytest.mark.parametrize("rate", [1, 10, 100])
def test_at_its_first_start_a_stream_is_measured_against_2_percent(rate: float) -> None:
    for seed in range(5):
        assert run(Watch(), stream(seed, rate, 0.03, HOUR // 2))[1] == [], seed
        assert kinds(run(Watch(), stream(seed, rate, 0.3, 10 * MINUTE))[1]) == [IncidentOpened], (
            seed
        )


def test_a_new_stream_knows_its_own_share_after_minutes() -> None:
    watch, _ = run(Watch(), stream(1, 100, 0.08, 4 * MINUTE))
    watch, events = run(watch, stream(2, 100, 0.5, MINUTE))
    assert kinds(events) == [IncidentOpened]
    assert open_incident(watch).usual == pytest.approx(0.08, abs=0.01)
    assert kinds(run(watch, stream(3, 100, 0.08, 5 * MINUTE))[1]) == [IncidentClosed]


def steady(accepted: int, rejected: int, buckets: int) -> list[Verdicts]:
    return [Verdicts(accepted, rejected)] * buckets


def test_an_incident_counts_from_where_the_share_rose_to_its_closing() -> None:
    calm, risen = steady(495, 5, MINUTE), steady(450, 50, MINUTE)
    watch, events = run(settled(100, 0.01), [*calm, *risen])
    since = (FIRST + MINUTE) * BUCKET_MS
    assert [event.incident.since for event in events] == [since]
    assert events[0].incident.opened == since + 2 * BUCKET_MS
    assert (events[0].incident.rejected, events[0].incident.seen) == (100, 1_000)
    now = open_incident(watch)
    assert (now.rejected, now.seen, now.share) == (600, 6_000, 0.1)
    assert now.usual == pytest.approx(0.01)
    _, (closed,) = run(watch, steady(495, 5, 3 * MINUTE))
    assert isinstance(closed, IncidentClosed)
    spent = (closed.at - since) // BUCKET_MS - MINUTE
    assert spent == pytest.approx(2 * MINUTE, abs=2)
    assert closed.incident.rejected == 600 + 5 * spent
    assert closed.incident.seen == 6_000 + 500 * spent
    assert closed.incident.share == 0.01


def test_an_incident_of_hours_never_becomes_the_norm() -> None:
    before = settled(100, 0.01)
    watch, events = run(before, stream(1, 100, 0.1, 5 * HOUR))
    assert kinds(events) == [IncidentOpened]
    assert watch.past == before.past
    watch, events = run(watch, stream(2, 100, 0.01, HOUR))
    assert kinds(events) == [IncidentClosed]
    assert watch.past.share == pytest.approx(0.01, rel=0.05)
    assert kinds(run(watch, stream(3, 100, 0.1, MINUTE))[1]) == [IncidentOpened]


def test_what_has_left_the_window_becomes_the_norm() -> None:
    watch, _ = run(settled(10, 0.01), stream(1, 10, 0.02, 12 * HOUR))
    assert watch.past.share == pytest.approx(0.0175, rel=0.05)


def test_silence_closes_after_five_minutes_and_forgets_nothing() -> None:
    watch, events = run(settled(10, 0.01), steady(0, 50, MINUTE))
    assert kinds(events) == [IncidentOpened]
    past, last = watch.past, (watch.bucket + 1) * BUCKET_MS
    watch, events = run(watch, steady(0, 0, 5 * MINUTE - 1))
    assert events == []
    watch, (closed,) = run(watch, [EMPTY])
    assert isinstance(closed, IncidentClosed)
    assert closed.at == last + 300_000
    assert closed.incident.share == 1
    watch, later = advance(watch, watch.bucket + 100 * HOUR, EMPTY)
    assert (watch.window, watch.past) == ((), past)
    assert later == ()


def test_after_a_gap_of_days_one_bucket_may_close_an_incident_and_open_the_next() -> None:
    watch, _ = run(settled(100, 0.01), steady(0, 500, MINUTE))
    back = watch.bucket + 1_000_000
    watch, events = advance(watch, back, Verdicts(0, 500))
    assert kinds(events) == [IncidentClosed, IncidentOpened]
    assert open_incident(watch).since == back * BUCKET_MS
    assert open_incident(watch).usual == pytest.approx(0.01)


def test_a_restart_after_every_bucket_changes_nothing() -> None:
    shares = (0.01, 0.1, 0.01, 0.01, 0.3)
    parts = [stream(seed, 20, share, 3 * MINUTE) for seed, share in enumerate(shares)]
    kept = restarted = settled(20, 0.01)
    for number, verdicts in enumerate((one for part in parts for one in part), FIRST):
        kept, events = advance(kept, number, verdicts)
        restarted = msgspec.json.decode(msgspec.json.encode(restarted), type=Watch)
        restarted, found = advance(restarted, number, verdicts)
        assert (restarted, found) == (kept, events)
    assert kept.incident


def test_buckets_come_in_increasing_order() -> None:
    watch, _ = advance(Watch(), FIRST, Verdicts(1, 0))
    for bucket in (FIRST, FIRST - 1):
        with pytest.raises(ValueError, match="increasing order"):
            advance(watch, bucket, EMPTY)


counts = st.sampled_from([0, 0, 1, 5, 30, 500]) | st.integers(0, 10**9)
gaps = st.sampled_from([1, 1, 1, 1, 2, 13, 61, 121, 10**6])
runs = st.tuples(gaps, st.builds(Verdicts, counts, counts), st.integers(1, 60))


@given(st.lists(runs, max_size=8))
def test_any_buckets_open_and_close_in_turn(parts: Sequence[tuple[int, Verdicts, int]]) -> None:
    watch, bucket = Watch(), FIRST
    events: list[IncidentOpened | IncidentClosed] = []
    for gap, verdicts, times in parts:
        for step in [gap] + [1] * (times - 1):
            bucket += step
            watch, found = advance(watch, bucket, verdicts)
            events += found
            assert len(msgspec.json.encode(watch)) < 4_096
    assert kinds(events) == [(IncidentOpened, IncidentClosed)[at % 2] for at in range(len(events))]
    assert bool(watch.incident) == bool(len(events) % 2)
    for event in events:
        incident = event.incident
        assert incident.since <= incident.opened
        assert 10 <= incident.rejected <= incident.seen
        assert not isinstance(event, IncidentClosed) or event.at > incident.opened


@given(st.lists(st.tuples(st.integers(1, 150), st.builds(Verdicts, counts, counts)), max_size=8))
def test_missing_buckets_are_empty_ones(parts: Sequence[tuple[int, Verdicts]]) -> None:
    skipped = filled = Watch(FIRST)
    for gap, verdicts in parts:
        skipped, found = advance(skipped, skipped.bucket + gap, verdicts)
        filled, events = run(filled, [*steady(0, 0, gap - 1), verdicts])
        assert (skipped, list(found)) == (filled, events)


def test_ten_minutes_of_a_billion_records_a_bucket_fit() -> None:
    watch, _ = run(Watch(2**40), [Verdicts(10**9 - at, 10**9 - 2 * at) for at in range(300)])
    assert watch.incident
    assert len(msgspec.json.encode(watch)) < 4_096


@pytest.mark.parametrize(
    ("usual", "expected"), [(0, 0.02), (0.01, 0.03), (0.1, 0.25), (0.5, 0.75), (0.9, 0.964)]
)
def test_an_incident_has_three_times_the_usual_odds(usual: float, expected: float) -> None:
    assert opens_at(usual) == pytest.approx(expected, abs=0.001)
