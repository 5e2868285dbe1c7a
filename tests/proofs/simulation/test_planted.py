"""The simulation finds what is planted: here what takes it few seeds, the rest by `planted`."""

from __future__ import annotations

from typing import Final

import pytest

from tests.proofs.simulation.planted import seeds_until_found

QUICK: Final = (
    "fence_forgotten",
    "aborted_messages_are_read",
    "rows_and_progress_apart",
    "progress_without_its_rows",
    "unknown_outcome_taken_for_failure",
    "positions_ahead_of_what_was_given",
    "positions_of_the_index_without_its_rows",
    "frontier_passed_too_early",
    "held_records_forgotten",
    "accepted_without_a_grant",
    "nothing_is_contested",
    "grants_not_restored",
    "nobody_fences_earlier_owners",
    "owners_before_our_own_record_are_not_fenced",
)
MOST: Final = 300
"""Far more than any takes now: another engine gives seeds another course."""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", QUICK)
def test_a_planted_fault_is_found(name: str) -> None:
    assert seeds_until_found(name, MOST) is not None
