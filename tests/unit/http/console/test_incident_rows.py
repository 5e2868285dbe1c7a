"""An incident as the overview shows it."""

from __future__ import annotations

from worker.desk.incidents import IncidentReport
from worker.http.console.overview import incident_row

SINCE = 1_764_547_200_000


def test_it_leads_to_its_own_rejections() -> None:
    found = IncidentReport(
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
    row = incident_row(found, SINCE + 7 * 60_000 + 1)
    assert row.headline == "50 % of users are rejected, 1.0 % before"
    assert row.details == "31 of 62 records since then; violations: role: invalid_enum"
    assert row.query == {"entity": "users", "since": "8m"}
