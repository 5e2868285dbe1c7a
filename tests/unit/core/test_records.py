"""Every record that the specification allows is accepted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given

from schemas import ENTITIES, Entity, Kind
from tests.unit.core.records_kit import DECODERS, LATEST, Drawn, any_values, good_records
from worker.core.decode import Decoded, Deletion, Invalid
from worker.core.possible import column_of, possible_violations
from worker.core.violations import Code


@given(good_records())
def test_a_record_that_the_specification_allows_is_accepted(drawn: Drawn) -> None:
    outcome = DECODERS[drawn.entity.name].decode(drawn.value, None, LATEST)
    assert isinstance(outcome, Decoded), outcome
    assert outcome.unknown_fields == 0


@given(good_records())
def test_its_row_holds_what_was_sent_in_column_order(drawn: Drawn) -> None:
    outcome = DECODERS[drawn.entity.name].decode(drawn.value, None, LATEST)
    assert isinstance(outcome, Decoded)
    row = json.loads(outcome.row)
    sent = {name: v for name, v in drawn.record.items() if v is not None and v != ""}
    columns = {column.name: column for column in drawn.entity.columns}
    assert list(row) == [name for name in columns if name in sent]
    for name, value in sent.items():
        match columns[name].kind:
            case Kind.UUID | Kind.EMAIL:
                assert row[name] == value.lower()
            case Kind.TIMESTAMP:
                assert abs(moment(row[name]) - moment(value)) <= timedelta(microseconds=1)
                assert row[name][10] == "T"
                assert row[name].endswith("Z")
                assert len(row[name]) in (20, 27)
            case Kind.RATING:
                assert row[name] == value
                assert isinstance(row[name], float)
            case _:
                assert row[name] == value


def moment(text: str) -> datetime:
    read = datetime.fromisoformat(text.upper())
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read


@given(good_records())
def test_it_is_warned_of_naive_times_and_upper_case_addresses_alone(drawn: Drawn) -> None:
    outcome = DECODERS[drawn.entity.name].decode(drawn.value, None, LATEST)
    assert isinstance(outcome, Decoded)
    expected = set()
    for column in drawn.entity.columns:
        value = drawn.record.get(column.name)
        if not value:
            continue
        if column.kind is Kind.EMAIL and value != value.lower():
            expected.add(("email_lowercased", column.name))
        if column.kind is Kind.TIMESTAMP and datetime.fromisoformat(value.upper()).tzinfo is None:
            expected.add(("naive_timestamp", column.name))
    assert {(v.code.value, v.field) for v in outcome.warnings} == expected
    assert all(v.severity == "warning" for v in outcome.warnings)


@given(good_records())
def test_it_refers_to_what_its_fields_name(drawn: Drawn) -> None:
    decoder = DECODERS[drawn.entity.name]
    outcome = decoder.decode(drawn.value, None, LATEST)
    assert isinstance(outcome, Decoded)
    for fields, ids in (
        (decoder.user_fields, outcome.users),
        (decoder.match_fields, outcome.matches),
    ):
        sent = [drawn.record.get(name) or "" for name in fields]
        assert [id_.hex() for id_ in ids] == [uuid.lower().replace("-", "") for uuid in sent]


@given(any_values())
def test_no_column_has_a_violation_that_is_not_counted_from_the_start(
    sent: tuple[Entity, bytes],
) -> None:
    entity, value = sent
    outcome = DECODERS[entity.name].decode(value, b"another key", LATEST)
    assert not isinstance(outcome, Deletion)
    found = outcome.violations if isinstance(outcome, Invalid) else outcome.warnings
    possible = set(possible_violations(entity))
    assert {(column_of(v.field), v.code) for v in found} <= possible


def test_every_code_is_possible_somewhere() -> None:
    assert {code for e in ENTITIES.values() for _, code in possible_violations(e)} == set(Code)
