"""The simulation finds what is planted."""

from __future__ import annotations

import pytest

from tests.simulation.planted import FAULTS, seeds_until_found

MOST = 2_000
"""Far more than any takes now: another engine gives seeds another course."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    assert seeds_until_found(name, MOST) is not None
