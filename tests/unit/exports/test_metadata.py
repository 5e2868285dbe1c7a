"""What an export says about itself."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from tests.unit.export_kit import metadata_of
from worker.exports import layout
from worker.exports.metadata import csv_comment, json_file, json_object, sheet_rows

COUNTS = {"users": [b"{}"] * 200, "feedback": []}


def test_the_object_has_the_fields_of_the_specification_in_its_order() -> None:
    text = json.dumps(json_object(metadata_of(COUNTS)))
    assert text == (
        '{"export_id": "550e8400-e29b-41d4-a716-446655440000", '
        '"export_date": "2025-11-22T10:30:00Z", '
        '"date_range": {"start": "2024-01-01", "end": "2025-11-22"}, '
        '"program_name": "Buddy Program", "version": "1.0.0", '
        '"record_counts": {"users": 200, "feedback": 0}}'
    )
    assert json.loads(json_file(metadata_of(COUNTS))) == {"export_metadata": json.loads(text)}


def test_sheet_rows_follow_the_object() -> None:
    rows = sheet_rows(metadata_of(COUNTS))
    assert rows[2] == ("date_range.start", "2024-01-01")
    assert rows[-2:] == [("record_counts.users", 200), ("record_counts.feedback", 0)]


def test_a_program_name_stays_on_its_line() -> None:
    comment = csv_comment(metadata_of({}, program_name="Bud\ndy\r\n\u2028x"), 3)
    assert len(comment.splitlines()) == 7
    assert "# Program Name: Bud dy x\n" in comment.replace("  ", " ")


def test_fractions_of_a_second_are_not_shown_and_early_years_keep_their_digits() -> None:
    moment = datetime(999, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    metadata = metadata_of({}, export_date=moment, start=date(1, 1, 1))
    assert metadata.exported_at == "0999-01-02T03:04:05Z"
    assert layout.directory_name(metadata).startswith("09990102T030405Z_")
    assert "0001-01-01" in csv_comment(metadata, 0)


def test_names() -> None:
    metadata = metadata_of(COUNTS)
    assert layout.directory_name(metadata) == (
        "20251122T103000Z_550e8400-e29b-41d4-a716-446655440000"
    )
    assert layout.csv_path(metadata, "users") == "buddy_export_2025-11-22/users.csv"
    assert layout.metadata_path(metadata) == "buddy_export_2025-11-22/metadata.json"
    assert layout.document_path(metadata) == "buddy_export_2025-11-22.json"
    assert layout.workbook_path(metadata) == "buddy_export_2025-11-22.xlsx"
    assert layout.download_name(metadata, "users") == "buddy_users_2025-11-22.csv"


@pytest.mark.parametrize(
    "changes",
    [
        {"export_date": datetime(2025, 1, 1)},  # noqa: DTZ001, that is the mistake
        {"export_date": datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=1)))},
        {"counts": {"matches": 1, "users": 1}},
        {"counts": {"pets": 1}},
    ],
    ids=["naive", "not UTC", "order", "unknown"],
)
def test_broken_promises(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        metadata_of({}, **changes)
