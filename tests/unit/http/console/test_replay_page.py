"""The page of a replay: where its new rejections are, and its words for one record."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest

from worker.http.access import ANYONE
from worker.http.console.pages import PageRenderer
from worker.http.console.replay_pages import rejected_again

BEGAN = 1_764_547_200_000
SINCE = {"since": "2025-12-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("chosen", "with_orphans", "entity"),
    [
        ({"entity": "users", "code": "invalid_enum"}, False, "users"),
        ({"coordinate": "buddy.rejected.matches/0/7"}, False, "matches"),
        ({"coordinate": "in.matches/0/7"}, False, "matches"),
        ({"code": "invalid_enum"}, False, None),
        ({"entity": "users"}, True, None),
    ],
)
def test_what_is_rejected_again_is_found_by_entity_and_moment(
    chosen: dict[str, str], with_orphans: bool, entity: str | None
) -> None:
    assert (
        rejected_again(chosen, BEGAN, with_orphans=with_orphans)
        == ({"entity": entity} if entity else {}) | SINCE
    )


def page(sent: int, **again: str) -> str:
    report: dict[str, Any] = {
        "dry_run": False,
        "sent": sent,
        "complete": True,
        "replay": "r",
        "skipped": {},
    }
    text = PageRenderer().fragment(
        "replay.html",
        caller=ANYONE,
        path="/replay",
        form_key="",
        has_session=False,
        chosen={"entity": "users"},
        options={},
        back="/rejections?entity=users",
        report=report | {"orphans": 1},
        problem=None,
        again=again | SINCE,
    )
    return unescape(text)


def test_it_leads_to_what_is_rejected_again() -> None:
    text = page(2, entity="users")
    assert "2 records were sent again" in text
    assert "They have no new verdicts yet" in text
    assert "/rejections?entity=users&since=2025-12-01T00%3A00%3A00Z" in text
    assert "users that were rejected since 00:00" in text
    assert "all that was rejected since 00:00" in page(2)


def test_one_record_has_words_of_its_own() -> None:
    text = page(1)
    assert "1 record was sent again" in text
    assert "It has no new verdict yet" in text
    assert "1 orphan that the chosen ones have caused is open" in text


def test_without_a_record_there_is_no_verdict_to_come() -> None:
    assert "rejected since" not in page(0)
