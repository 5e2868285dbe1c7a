"""The CSV writer, read by the csv module."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Kind
from tests.unit.export_kit import FEWER, HOSTILE, drained, metadata_of, rows_of, user
from worker.exports.formats.csv import CsvOutcome, csv_chunks
from worker.exports.formats.table import rating_text

USERS = ENTITIES["users"]


def written(
    entity: str, rows: list[bytes], *, block: int = 2, **options: Any
) -> tuple[str, CsvOutcome]:
    chunks = csv_chunks(
        ENTITIES[entity],
        metadata_of({entity: rows}),
        [rows[n : n + block] for n in range(0, len(rows), block)],
        **options,
    )
    data, outcome = drained(chunks)
    return data.decode(), outcome


def test_the_example_of_the_specification() -> None:
    row = user(
        language_preference="English", interests=["hiking", "cooking"], location="Oslo, Norway"
    )
    text, outcome = written("users", [row])
    assert text == (
        "# Buddy Program Export\n"
        "# Export ID: 550e8400-e29b-41d4-a716-446655440000\n"
        "# Export Date: 2025-11-22T10:30:00Z\n"
        "# Date Range: 2024-01-01 to 2025-11-22\n"
        "# Program Name: Buddy Program\n"
        "# Total Records: 1\n"
        "# Version: 1.0.0\n"
        "id,email,first_name,last_name,role,joined_at,language_preference,interests,location\n"
        "550e8400-e29b-41d4-a716-446655440000,alice@example.com,Alice,Smith,participant,"
        '2024-01-15T10:00:00Z,English,"[""hiking"",""cooking""]","Oslo, Norway"\n'
    )
    assert outcome == CsvOutcome(rows=1, formula_cells=0)


def test_no_rows_leave_the_header() -> None:
    text, outcome = written("milestones", [])
    assert text.splitlines()[5:] == [
        "# Total Records: 0",
        "# Version: 1.0.0",
        ",".join(column.name for column in ENTITIES["milestones"].columns),
    ]
    assert outcome.rows == 0


@pytest.mark.parametrize(
    ("rating", "text"),
    [
        (0.0, "0.00"),
        (-0.0, "0.00"),
        (1.0, "1.00"),
        (0.5, "0.50"),
        (0.85, "0.85"),
        (0.855, "0.855"),
        (1e-7, "0.0000001"),
        (1.5e-7, "0.00000015"),
        (0.1 + 0.2, "0.30000000000000004"),
    ],
)
def test_ratings(rating: float, text: str) -> None:
    assert rating_text(rating) == text


@given(st.floats(0, 1))
def test_ratings_lose_nothing(rating: float) -> None:
    text = rating_text(rating)
    assert float(text) == rating
    assert "e" not in text
    assert len(text.partition(".")[2]) >= 2


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_quoted_and_kept(text: str) -> None:
    csv_text, _ = written("users", [user(first_name=text, location=text), user()])
    rows = list(
        csv.reader(io.StringIO(csv_text.split("# Version: 1.0.0\n")[1], newline=""), strict=True)
    )
    assert [rows[1][2], rows[1][8], rows[2][2]] == [text, text, "Alice"]


@pytest.mark.parametrize("start", list("=+-@\t\r"))
def test_formulas_are_counted_and_guarded_only_if_asked(start: str) -> None:
    formula = f"{start}1+1"
    rows = [user(first_name=formula, last_name=formula), user(first_name=f"a{formula}"), user()]
    faithful, outcome = written("users", rows)
    assert outcome == CsvOutcome(rows=3, formula_cells=2)
    assert "'" not in faithful
    guarded, outcome = written("users", rows, guard_formulas=True)
    assert outcome.formula_cells == 2
    assert guarded.count("'" + formula) == 2
    assert guarded.replace("'", "") == faithful


@pytest.mark.parametrize("entity", list(ENTITIES))
@FEWER
@given(data=st.data())
def test_the_csv_module_reads_the_same_cells(entity: str, data: st.DataObject) -> None:
    rows = data.draw(rows_of(ENTITIES[entity]))
    text, outcome = written(entity, rows)
    assert outcome.rows == len(rows)
    table = text.split("# Version: 1.0.0\n", 1)[1]
    read = list(csv.DictReader(io.StringIO(table, newline=""), strict=True))
    assert len(read) == len(rows)
    for cells, row in zip(read, rows, strict=True):
        values = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
        for column in ENTITIES[entity].columns:
            cell = cells[column.name]
            raw = bytes(values.get(column.name, msgspec.Raw(b'""'))).decode()
            if column.kind is Kind.RATING and raw != '""':
                assert float(cell) == float(raw)
            elif raw.startswith('"'):
                assert cell == msgspec.json.decode(raw)
            else:
                assert cell == raw


def test_a_row_that_is_not_canonical_is_refused() -> None:
    with pytest.raises(msgspec.MsgspecError):
        written("users", [b'{"id":1}'])
