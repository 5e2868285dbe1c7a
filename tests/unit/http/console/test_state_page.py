"""The state page: when it says that all is well, and how it names what runs."""

from __future__ import annotations

from html import unescape

from worker.http.access import ANYONE
from worker.http.console.incident_rows import IncidentRow
from worker.http.console.pages import PageRenderer
from worker.ops.health import Readiness
from worker.status.report import LiveWorker, Report
from worker.status.whole import WholeStatus

INCIDENT = IncidentRow(
    3, 1_764_547_200_000, None, "50 % of users are rejected, 1.0 % before", "", {"entity": "users"}
)


def page(
    incidents: list[IncidentRow], desk_trouble: str | None = None, tasks: tuple[int, ...] = ()
) -> str:
    workers = [LiveWorker("0123456789abcdef", list(tasks))]
    report = Report({}, [], workers, [], None, {}, {}, 0, lag_is_exact=True)
    text = PageRenderer().fragment(
        "state.html",
        caller=ANYONE,
        path="/state",
        form_key="",
        has_session=False,
        found=WholeStatus(report, {}, None, []),
        failure=None,
        ready=Readiness(ready=True, reasons=[], expired=0),
        stalled=None,
        incidents=incidents,
        desk_trouble=desk_trouble,
    )
    return unescape(text)


def test_all_is_well_without_an_open_incident() -> None:
    assert "All is well" in page([])


def test_an_open_incident_is_named_and_leads_to_its_rejections() -> None:
    text = page([INCIDENT])
    assert "All is well" not in text
    assert INCIDENT.headline in text
    assert 'href="/rejections?entity=users"' in text


def test_what_the_desk_does_not_know_is_not_well() -> None:
    text = page([], "the desk has not read")
    assert "All is well" not in text
    assert "the desk has not read" in text


def test_a_worker_is_named_whole_with_its_tasks() -> None:
    text = page([], tasks=(0, 1, 2, 3))
    assert '<code class="id" title="0123456789abcdef">0123456789abcdef</code>' in text
    assert "tasks 0 to 3" in text
