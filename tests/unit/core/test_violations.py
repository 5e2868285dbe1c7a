"""The violations of one record: the first hundred, the others counted."""

from __future__ import annotations

from worker.core.violations import MOST_REPORTED, Code, Findings


def test_a_violation_of_the_whole_record_comes_first_and_pushes_the_last_one_out() -> None:
    found = Findings()
    for number in range(MOST_REPORTED):
        found.add(Code.WRONG_TYPE, f"f{number}", "expected something else")
    found.add(Code.WRONG_TYPE, "last", "expected something else")
    found.add_first(Code.INVALID_KEY, "", "expected another key")
    assert len(found.violations) == MOST_REPORTED
    assert (found.violations[0].code, found.violations[-1].field) == (
        Code.INVALID_KEY, f"f{MOST_REPORTED - 2}",
    )  # fmt: skip
    assert (found.omitted, found.errors) == (2, MOST_REPORTED + 2)
