"""The corpus in tests/cases/records, written from the contract alone, against the decoder."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cases_kit import CASES, key_of, value_of
from worker.accepted import Foreign, rule_of
from worker.core.decode import Decoded, Deletion, Invalid, decoders

ARRIVAL = "2026-01-01T00:00:00Z"
DECODERS = decoders()


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_cases(path: Path) -> None:
    """One test a file: pytest takes twenty times as long for a test of each case."""
    cases = json.loads(path.read_bytes())
    assert cases
    wrong = {}
    for case in cases:
        try:
            _check(case)
        except AssertionError as error:
            wrong[case["name"]] = str(error)
    assert wrong == {}


def _check(case: dict[str, Any]) -> None:
    arrival = datetime.fromisoformat(case.get("arrival", ARRIVAL)).astimezone(UTC)
    outcome = DECODERS[case["entity"]].decode(
        value_of(case), key_of(case), arrival + timedelta(seconds=60)
    )
    found: list[dict[str, str]] = []
    if isinstance(outcome, Invalid):
        verdict = "rejected"
        found = [violation_of(v) for v in outcome.violations]
        assert outcome.omitted == case.get("violations_omitted", 0)
    else:
        verdict = "accepted"
        published = outcome.row if isinstance(outcome, Decoded) else None
        assert not isinstance(rule_of(case["entity"]).read(outcome.key, published), Foreign)
        if isinstance(outcome, Decoded):
            found = [violation_of(v) for v in outcome.warnings]
            if "row" in case:
                assert outcome.row.decode() == case["row"]
    expected = case["violations"]
    if "violations_count" in case:
        assert len(found) == case["violations_count"]
        found = found[: len(expected)]
    assert (verdict, found) == (case["verdict"], expected)
    if "canonical_key" in case:
        key = outcome.key
        assert (None if key is None else key.decode()) == case["canonical_key"]
    assert isinstance(outcome, Deletion) == (
        bool(case.get("deletion")) and case["verdict"] == "accepted"
    )


def violation_of(v: Any) -> dict[str, str]:
    return {"code": v.code.value, "field": v.field, "severity": v.severity}
