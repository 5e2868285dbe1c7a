"""A part of the work that fails counts as hindered until it has gone well for a while."""

from __future__ import annotations

import pytest

from tests.clock_kit import SettableClock
from worker.ops.health import Health, ServiceHealth
from worker.ops.metrics import Metrics
from worker.ops.steady_health import STEADY_MS, SteadyHealth


@pytest.fixture
def health(clock: SettableClock) -> ServiceHealth:
    part = Health(Metrics(), clock.steady).part("sink")
    part.restored()
    return part


@pytest.fixture
def hindrances(health: ServiceHealth, clock: SettableClock) -> SteadyHealth:
    return SteadyHealth(health, clock.steady)


def test_it_lasts_while_failures_repeat_after_pauses(
    hindrances: SteadyHealth, health: ServiceHealth, clock: SettableClock
) -> None:
    began = clock.steady()
    for pause in (200, 1_000, 4_999, 5_000, 20_000):
        hindrances.hindered("broker", "no right")
        clock.advance(pause)
        for _ in range(5):  # what else the service does goes well meanwhile
            hindrances.free("broker")
            clock.advance(STEADY_MS // 5)
            seconds = (clock.steady() - began) // 1000
            reasons = health.reasons(clock.steady())
            assert reasons == [f"sink: broker: no right (for {seconds} s)"]
    hindrances.free("broker")
    assert health.reasons(clock.steady()) == []


def test_it_ends_at_once_where_the_cause_is_seen_to_be_over(
    hindrances: SteadyHealth, health: ServiceHealth, clock: SettableClock
) -> None:
    hindrances.hindered("store", "damaged")
    hindrances.hindered("broker", "no answer")
    hindrances.free("store", after=0)
    assert health.reasons(clock.steady()) == ["sink: broker: no answer (for 0 s)"]
    hindrances.free("broker", after=0)
    assert health.reasons(clock.steady()) == []


def test_each_part_has_its_own_time(
    hindrances: SteadyHealth, health: ServiceHealth, clock: SettableClock
) -> None:
    hindrances.free("broker")  # before any failure
    hindrances.hindered("broker", "no answer")
    hindrances.free("broker")
    clock.advance(3_000)
    hindrances.hindered("election", "no right")
    hindrances.free("election")
    clock.advance(2_000)
    hindrances.free("broker")
    hindrances.free("election")
    assert health.reasons(clock.steady()) == ["sink: election: no right (for 2 s)"]
