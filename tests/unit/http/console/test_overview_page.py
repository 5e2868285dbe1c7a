"""The live part of the overview: open incidents on top, and those that have ended folded."""

from __future__ import annotations

from html import unescape

from worker.http.console.history import History
from worker.http.console.incident_rows import IncidentRow, Incidents
from worker.http.console.pages import PageRenderer

BEGAN = 1_764_547_200_000
OPEN = IncidentRow(1, BEGAN, None, "31 % of users are rejected", "", {"entity": "users"})
ENDED = OPEN._replace(id=2, ended=BEGAN, headline="31 % of users were rejected")


def parts(incidents: Incidents) -> tuple[str, str]:
    """The text of the notices, and of what has ended."""
    text = PageRenderer().fragment(
        "live.html",
        tiles=[],
        window=History().window(BEGAN / 1_000),
        status=None,
        failure=None,
        rejections=None,
        incidents=incidents,
        desk_trouble=None,
    )
    notices, _, rest = unescape(text).partition('<details id="ended">')
    return notices, rest.partition("</details>")[0]


def test_open_incidents_are_on_top_and_ended_ones_are_folded() -> None:
    notices, ended = parts(Incidents([OPEN], [ENDED]))
    assert OPEN.headline in notices
    assert ENDED.headline not in notices
    assert "1 incident ended in the last 24 hours" in ended
    assert ENDED.headline in ended
    assert 'href="/rejections?entity=users"' in ended


def test_without_one_nothing_is_listed() -> None:
    _, ended = parts(Incidents([], []))
    assert "<li" not in ended
