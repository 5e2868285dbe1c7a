"""Export, send that export to a fresh broker, export again: the same rows, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.accounts import json_rows
from tests.acceptance.kit import Another
from tests.acceptance.material import sendable, split, user, write, write_rows
from worker.exports.verify import verify

pytestmark = pytest.mark.acceptance

FORMATS = {"embedded": ("csv", "json", "xlsx"), "kafka": ("xlsx",)}
"""A format is read the same way whatever the broker: on Kafka the strangest one is enough."""
TEXTS = (
    "=1+1", "+47 22 22 22 22", "-1", "@SUM(A1)", "\t=tab", "'quoted", '"', '""', ",", ";", "a,b",
    "line\nbreak", "carriage\rreturn", "both\r\n", "\n", " in front", "behind ", "a\x00b", "\x01",
    "\x1f\x7f\x85\u2028", "_x0041_", "_x005F_", "_x000D_", "_", "\ufeffBOM", "\ufffe\uffff",
    "👩‍👩‍👧‍👦", "ليلى", "e\u0301", "1", "1.0", "007", "1e5", "true", "TRUE", "null", "None", "NaN",
    "#N/A", "2025-01-01", "2025-01-01T00:00:00Z", "[]", "{}", '["a"]', "# Version: 1.0", "#",
    "users", "id", "\\", "\\n", "\\u0041", "<b>&amp;</b>", "]]>", "x" * 32_767,
)  # fmt: skip
"""What a spreadsheet, a CSV reader or a parser is tempted to take for something else; the last one
fills a cell, so it stands alone."""


def awkward_rows() -> dict[str, list[dict[str, Any]]]:
    """Rows that are accepted, in each of which a format could lose something."""
    short = [t for t in TEXTS if len(t) <= 100 and t.strip()]
    users = [user(first_name=t, last_name=t[::-1]) for t in short]
    users += [user(location=t, language_preference=t) for t in TEXTS]
    users += [
        user(interests=[]),
        user(interests=[""]),
        user(interests=list(TEXTS[:-1])),
        user(interests=["a", "a"]),
        user(joined_at="0001-01-01T00:00:00Z"),
        user(joined_at="2025-01-01T00:00:00.000001+14:00"),
    ]
    someone = users[0]["id"]
    objects: list[Any] = [
        {}, {"": ""}, {"a": None}, {"a": {"b": [1, 1.0, 1e100, -0.0, 0.1, True, None, {}]}},
        {"text": list(TEXTS[:-1])}, {"n": 12345678901234567890123}, {"z": 1, "a": 2},
    ]  # fmt: skip
    milestones = [
        {
            "milestone_id": number,
            "user_id": someone,
            "milestone_title": "=title()",
            "milestone_category": "other",
            "reached_at": "2025-02-03T04:05:06.7Z",
            "points": 2**53 - 1,
            "progress": content,
        }
        for number, content in enumerate(objects, 1)
    ]
    sessions = [
        {
            "session_id": user()["id"],
            "skill_id": 2**53 - 1,
            "skill_name": "Excel",
            "teacher_id": someone,
            "learner_id": someone,
            "completed_at": "2025-02-03T04:05:06Z",
            "teacher_rating": rating,
            "sdg_goals": [1, 17],
        }
        for rating in (0, 1, 0.5, 0.1, 0.123456789012345, 1e-7, 5e-324)
    ]
    return {"users": users, "skill_sessions": sessions, "milestones": milestones}


def test_every_format_carries_every_row(another: Another, kind: str, tmp_path: Path) -> None:
    first = another(grace_seconds=3)
    programme, _ = split(sendable(1_500, seed=3))
    service = first.start("run").ready()
    first.run("send", write(tmp_path / "programme", programme), "--wait", "--json")
    sent = first.run("send", write_rows(tmp_path / "awkward", awkward_rows()), "--wait")
    sent.succeeded()
    export = first.export()
    service.stop().succeeded()
    assert verify(export).problems == ()
    rows = json_rows(export)
    assert all(rows.values())

    paths = {
        "csv": next(path for path in export.iterdir() if path.is_dir()),
        "json": next(export.glob("buddy_export_*.json")),
        "xlsx": next(export.glob("*.xlsx")),
    }
    for form in FORMATS[kind]:
        again = another(grace_seconds=3)
        service = again.start("run").ready()
        again.run("send", paths[form], "--wait", "--json").succeeded()
        copy = json_rows(again.export("--format", "json"))
        service.stop().succeeded()
        for entity in rows:
            assert copy[entity] == rows[entity], f"{entity} by way of {form}"
