"""Incidents as the pages show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.desk_kit import NAMES
from worker.desk.incidents import IncidentReport
from worker.desk.store import RejectionStore
from worker.http.console.incident_rows import incident_row, incidents_of

MINUTE = 60_000
HOUR = 60 * MINUTE
SINCE = 1_764_547_200_000
FOUND = IncidentReport(
    id=3,
    entity="users",
    what="rejections",
    since=SINCE,
    opened=SINCE + 5_000,
    closed=None,
    usual=0.01,
    share=0.5,
    found=31,
    seen=62,
    violations=[("invalid_enum", "role")],
    examples=["buddy.rejected.users/0/1"],
)


def with_(**changes: Any) -> IncidentReport:
    return msgspec.structs.replace(FOUND, **changes)


def test_it_leads_to_its_own_rejections() -> None:
    row = incident_row(FOUND, skew=-MINUTE)
    assert row.headline == "50 % of users are rejected, 1.0 % before"
    assert row.details == "31 of 62 records since then; violations: role: invalid_enum"
    assert row.query == {
        "entity": "users",
        "code": "invalid_enum",
        "field": "role",
        "since": "2025-11-30T23:59:00Z",
    }


@pytest.mark.parametrize(
    ("violations", "filters"),
    [
        ([], {}),
        ([("malformed_record", "")], {"code": "malformed_record"}),
        ([("wrong_type", "a"), ("wrong_type", "b")], {"code": "wrong_type"}),
        ([("wrong_type", "a"), ("invalid_enum", "a")], {"field": "a"}),
        ([("wrong_type", "a"), ("invalid_enum", "b")], {}),
    ],
)
def test_its_filters_leave_out_nothing_that_stands_out(
    violations: list[tuple[str, str]], filters: dict[str, str]
) -> None:
    query = incident_row(with_(violations=violations), 0).query
    assert {name: query[name] for name in query if name in ("code", "field")} == filters


def test_one_that_has_ended_leads_to_settled_rejections_too() -> None:
    row = incident_row(with_(closed=SINCE + MINUTE), 0)
    assert (row.ended, row.query["all"]) == (SINCE + MINUTE, "true")
    assert row.headline == "50 % of users were rejected, 1.0 % before"
    assert "over at" not in row.details


def test_those_that_ended_more_than_a_day_ago_are_left_out(tmp_path: Path) -> None:
    now = SINCE + 30 * HOUR
    store = RejectionStore(tmp_path, NAMES)
    for number, closed in enumerate([None, now - 24 * HOUR - 1, now - 24 * HOUR, now - HOUR]):
        report = with_(id=number, opened=number, closed=closed)
        with store.database.guard(), store.database.transaction():
            store.database.execute(
                "INSERT INTO incidents (id, entity, what, opened, closed, report)"
                " VALUES (?, 'users', 'rejections', ?, ?, ?)",
                (number, number, closed, msgspec.json.encode(report)),
            )
    found = incidents_of(store, now)
    store.close()
    assert [row.id for row in found.open] == [0]
    assert [row.id for row in found.ended] == [3, 2]
