"""`buddy check` on the folders of tests/cases/files, which were written from the contract alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.core_kit import NOW, good, to_json
from worker.checking import Checked, Checker
from worker.core.decode import DEFAULT_LIMIT, RecordDecoder
from worker.files import FileRecord, expand

FOLDERS = sorted(path for path in (ROOT / "tests" / "cases" / "files").iterdir() if path.is_dir())


def checker(limit: int = DEFAULT_LIMIT) -> Checker:
    return Checker(lambda: NOW, 60, limit)


def check(folder: Path) -> tuple[Checker, list[Checked]]:
    one = checker()
    records = (
        record
        for source in expand(sorted(folder.glob("*.ndjson")), None)
        for record in source.read()
    )
    return one, list(one.check(records))


def records(entity: str, *values: bytes) -> Iterator[FileRecord]:
    for line, value in enumerate(values, 1):
        yield FileRecord(entity, f"{entity}.ndjson", line, value)


def expected_of(folder: Path) -> Any:
    return json.loads((folder / "expected.json").read_bytes())


def test_there_are_cases() -> None:
    assert len(FOLDERS) > 40


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_case(folder: Path) -> None:
    expected = expected_of(folder)
    one, results = check(folder)
    accepted = {entity: count for entity, count in one.accepted.items() if count}
    assert accepted == {entity: n for entity, n in expected["accepted"].items() if n}
    assert [
        {
            "path": Path(c.place.path).name,
            "line": c.place.line,
            "entity": c.entity,
            "found": sorted((v.code.value, v.field) for v in c.violations),
        }
        for c in results
        if c.rejection is not None
    ] == [
        {
            "path": r["path"],
            "line": r["line"],
            "entity": r["entity"],
            "found": sorted(zip(r["codes"], r["fields"], strict=True)),
        }
        for r in expected["rejected"]
    ]
    assert Counter(
        (Path(c.place.path).name, c.place.line, v.code.value, v.field)
        for c in results
        if c.rejection is None
        for v in c.violations
    ) == Counter((w["path"], w["line"], w["code"], w["field"]) for w in expected["warnings"])
    assert bool(one.rejected.total()) == (expected["exit_code"] == 1)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_record_has_a_row_or_a_rejection_that_says_where_it_stands(folder: Path) -> None:
    one, results = check(folder)
    assert len(results) == one.accepted.total() + one.rejected.total()
    for checked in results:
        assert (checked.row is None) != (checked.rejection is None)
        if checked.rejection is not None:
            told = json.loads(checked.rejection)
            assert told["source"] == {"path": checked.place.path, "line": checked.place.line}
            assert told["key"] == checked.key
            assert told["entity"] == checked.entity
            assert [v["code"] for v in told["violations"]] == [
                v.code.value for v in checked.violations
            ]
        else:
            assert all(v.severity == "warning" for v in checked.violations)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_own_accepted_rows_pass_again_without_a_word_about_themselves(folder: Path) -> None:
    _, results = check(folder)
    rows = [
        FileRecord(c.entity, c.place.path, c.place.line, c.row)
        for c in results
        if c.row is not None
    ]
    again = list(checker().check(rows))
    assert [c.row for c in again] == [record.value for record in rows]
    orphans = {"orphaned_match_id", "orphaned_attendee"}
    assert {v.code.value for c in again for v in c.violations} <= orphans


def test_codes_are_counted_once_a_record_however_often_they_occur() -> None:
    one = checker()
    list(one.check(records("users", to_json(good("users", interests=[1, 2, 3])))))
    assert one.codes == {("users", "wrong_type"): 1}


def test_unknown_fields_are_counted_by_entity() -> None:
    one = checker()
    list(one.check(records("users", to_json(good("users", shoe_size=1, pet="x")))))
    assert one.unknown_fields == {"users": 2}


def test_a_record_that_was_cut_short_in_reading_is_malformed_and_its_size_told() -> None:
    cut = FileRecord(
        "users", "users.ndjson", 7, to_json(good("users")), oversize=9_000_000, sha256="ab" * 32
    )
    one = checker()
    [checked] = one.check([cut])
    assert [v.code.value for v in checked.violations] == ["malformed_record"]
    assert checked.rejection is not None
    told = json.loads(checked.rejection)
    assert told["record_omitted"] == {"bytes": 9_000_000, "sha256": "ab" * 32}
    assert told["record"] is None
    assert one.accepted.total() == 0


def test_a_record_that_cannot_be_judged_is_rejected_and_those_after_it_are_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = RecordDecoder.decode

    def failing(self: RecordDecoder, value: bytes | None, *others: Any) -> Any:
        if value is not None and b"poison" in value:
            raise ZeroDivisionError
        return decode(self, value, *others)

    monkeypatch.setattr(RecordDecoder, "decode", failing)
    poisoned = to_json(good("users", 1, first_name="poison"))
    first, second = checker().check(records("users", poisoned, to_json(good("users", 2))))
    assert [v.code.value for v in first.violations] == ["internal_error"]
    assert second.rejection is None


def test_the_arrival_of_a_record_is_the_clock_when_it_was_read() -> None:
    edge = to_json(good("users", 1, joined_at="2026-01-01T00:01:00Z"))
    late = to_json(good("users", 2, joined_at="2026-01-01T00:01:00.000001Z"))
    first, second = checker().check(records("users", edge, late))
    assert first.rejection is None
    assert [v.code.value for v in second.violations] == ["future_timestamp"]
