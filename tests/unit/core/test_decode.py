"""Whatever comes in, exactly one outcome comes out; the fast path and the slow one agree."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Entity
from tests.unit.core.records_kit import (
    DECODERS,
    LATEST,
    Drawn,
    any_values,
    good_records,
    spell,
    texts,
    values,
)
from tests.unit.core_kit import good, to_json, uid
from worker.core.decode import Decoded, Deletion, Invalid, MalformedError
from worker.core.keys import id_bytes, key_of, read_key
from worker.core.known import address_digest
from worker.core.unknown import unknown_names
from worker.core.violations import MOST_REPORTED

entities = st.sampled_from(list(ENTITIES.values()))
message_keys = (
    st.none() | st.binary(max_size=40) | st.uuids(version=4).map(lambda u: str(u).encode())
)


@given(any_values(), message_keys)
def test_every_value_has_one_outcome_that_is_complete(
    drawn: tuple[Entity, bytes], key: bytes | None
) -> None:
    entity, value = drawn
    outcome = DECODERS[entity.name].decode(value, key, LATEST)
    if isinstance(outcome, Invalid):
        assert any(v.severity == "error" for v in outcome.violations)
        assert len(outcome.violations) <= MOST_REPORTED
        assert not outcome.omitted or len(outcome.violations) == MOST_REPORTED
        assert outcome.malformed == (outcome.violations[0].code == "malformed_record")
    else:
        assert isinstance(outcome, Decoded)
        assert all(v.severity == "warning" for v in outcome.warnings)


@given(any_values())
def test_a_row_is_its_entity_and_says_what_the_outcome_says(drawn: tuple[Entity, bytes]) -> None:
    entity, value = drawn
    outcome = DECODERS[entity.name].decode(value, None, LATEST)
    if not isinstance(outcome, Decoded):
        return
    row = msgspec.json.decode(outcome.row, type=entity.struct)
    fields = json.loads(outcome.row)
    assert list(fields) == [c.name for c in entity.columns if c.name in fields]
    assert None not in fields.values()
    assert "" not in fields.values()
    assert outcome.key == key_of(entity, fields)
    assert outcome.attendees == tuple(fields.get("attendees", ()))
    email = getattr(row, "email", None)
    assert outcome.address == (None if email is None else address_digest(email))
    decoder = DECODERS[entity.name]
    for names, ids in (
        (decoder.user_fields, outcome.users),
        (decoder.match_fields, outcome.matches),
    ):
        assert ids == tuple(id_bytes(fields[n]) if n in fields else b"" for n in names)


@given(any_values())
def test_what_the_fast_path_accepts_the_slow_path_accepts_alike(
    drawn: tuple[Entity, bytes],
) -> None:
    entity, value = drawn
    decoder = DECODERS[entity.name]
    naive: list[str] = []
    try:
        row = decoder._fast(value, LATEST, naive)
    except MalformedError:
        return
    if row is not None:
        fast = decoder.decode(value, None, LATEST)
        assert isinstance(fast, Decoded)
        assert fast == decoder._slow(value, None, LATEST)
        assert [found.field for found in fast.warnings] == naive
        assert fast.unknown_fields == 0


@given(any_values())
def test_a_canonical_row_stays_as_it_is(drawn: tuple[Entity, bytes]) -> None:
    entity, value = drawn
    decoder = DECODERS[entity.name]
    first = decoder.decode(value, None, LATEST)
    if isinstance(first, Decoded):
        again = decoder.decode(first.row, first.key, LATEST)
        assert again == msgspec.structs.replace(
            first, warnings=(), unknown_fields=0, unknown_names=()
        )


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_plain_canonical_row_takes_the_fast_path(entity: str) -> None:
    decoder = DECODERS[entity]
    outcome = decoder.decode(to_json(good(entity)), None, LATEST)
    assert isinstance(outcome, Decoded)
    assert decoder._fast(outcome.row, LATEST, []) is not None
    naive: list[str] = []
    assert decoder._fast(outcome.row.replace(b'Z"', b'"'), LATEST, naive) is not None
    assert naive


@given(good_records(), st.data())
def test_several_faults_are_all_reported_in_column_order(drawn: Drawn, data: st.DataObject) -> None:
    columns = data.draw(st.sets(st.sampled_from(drawn.entity.columns), min_size=1))
    record: dict[str, Any] = {**drawn.record, **{c.name: {"bad": True} for c in columns}}
    expected = [c.name for c in drawn.entity.columns if c in columns and c.kind != "object"]
    outcome = DECODERS[drawn.entity.name].decode(spell(record), None, LATEST)
    if expected:
        assert isinstance(outcome, Invalid)
        errors = [v for v in outcome.violations if v.severity == "error"]
        assert [v.field for v in errors] == expected
        assert {v.code.value for v in errors} == {"wrong_type"}
    else:
        assert isinstance(outcome, Decoded)


@given(good_records(), st.dictionaries(texts, st.integers(), min_size=1, max_size=5))
def test_unknown_fields_are_dropped_and_counted(drawn: Drawn, more: dict[str, int]) -> None:
    columns = {column.name for column in drawn.entity.columns}
    unknown = {name: value for name, value in more.items() if name not in columns}
    decoder = DECODERS[drawn.entity.name]
    plain = decoder.decode(drawn.value, None, LATEST)
    outcome = decoder.decode(spell({**unknown, **drawn.record}), None, LATEST)
    assert isinstance(plain, Decoded)
    names = unknown_names(unknown, ())
    assert outcome == msgspec.structs.replace(
        plain, unknown_fields=len(unknown), unknown_names=names
    )


@given(good_records(), st.data())
def test_of_duplicate_fields_the_last_counts_alone(drawn: Drawn, data: st.DataObject) -> None:
    column = data.draw(st.sampled_from([c for c in drawn.entity.columns if c.name in drawn.record]))
    earlier = data.draw(values(column) | st.integers() | st.none())
    value = spell({column.name: earlier})[:-1] + b"," + drawn.value[1:]
    decoder = DECODERS[drawn.entity.name]
    plain = decoder.decode(drawn.value, None, LATEST)
    assert decoder.decode(value, None, LATEST) == plain


@given(good_records(), st.booleans())
def test_the_records_own_key_is_accepted_in_any_case(drawn: Drawn, upper: bool) -> None:
    decoder = DECODERS[drawn.entity.name]
    plain = decoder.decode(drawn.value, None, LATEST)
    assert isinstance(plain, Decoded)
    key = plain.key.upper() if upper else plain.key
    assert decoder.decode(drawn.value, key, LATEST) == plain


@given(good_records(), st.binary(max_size=80))
def test_any_other_key_is_a_contradiction(drawn: Drawn, key: bytes) -> None:
    decoder = DECODERS[drawn.entity.name]
    plain = decoder.decode(drawn.value, None, LATEST)
    assert isinstance(plain, Decoded)
    outcome = decoder.decode(drawn.value, key, LATEST)
    if read_key(drawn.entity, key) == plain.key:
        assert outcome == plain
    else:
        assert isinstance(outcome, Invalid)
        errors = [v for v in outcome.violations if v.severity == "error"]
        assert [(v.code.value, v.field) for v in errors] == [("invalid_key", "")]
        assert outcome.key == plain.key


@given(entities, st.none() | st.binary(max_size=90))
def test_a_deletion_with_any_key_is_a_deletion_or_has_an_invalid_key(
    entity: Entity, key: bytes | None
) -> None:
    outcome = DECODERS[entity.name].decode(None, key, LATEST)
    if isinstance(outcome, Deletion):
        assert key is not None
        assert outcome.key == read_key(entity, key)
    else:
        assert isinstance(outcome, Invalid)
        assert [(v.code.value, v.field) for v in outcome.violations] == [("invalid_key", "")]
        assert outcome.key is None


@given(good_records())
def test_a_record_can_be_deleted_by_the_key_of_its_row(drawn: Drawn) -> None:
    decoder = DECODERS[drawn.entity.name]
    row = decoder.decode(drawn.value, None, LATEST)
    assert isinstance(row, Decoded)
    assert decoder.decode(None, row.key.upper(), LATEST) == Deletion(row.key)


@given(good_records())
def test_what_is_later_than_allowed_is_in_the_future_to_the_microsecond(drawn: Drawn) -> None:
    decoder = DECODERS[drawn.entity.name]
    record = {**drawn.record, drawn.entity.date: LATEST.isoformat()}
    assert isinstance(decoder.decode(spell(record), None, LATEST), Decoded)
    outcome = decoder.decode(spell(record), None, LATEST - timedelta(microseconds=1))
    assert isinstance(outcome, Invalid)
    errors = [v for v in outcome.violations if v.severity == "error"]
    assert [(v.code.value, v.field) for v in errors] == [("future_timestamp", drawn.entity.date)]


@pytest.mark.parametrize("entity", ENTITIES)
def test_upper_case_ids_give_the_row_of_lower_case_ids(entity: str) -> None:
    decoder = DECODERS[entity]
    lower = decoder.decode(to_json(good(entity)), None, LATEST)
    ids = {n: v.upper() for n, v in good(entity).items() if v in (uid(1), uid(2))}
    assert ids
    assert decoder.decode(to_json(good(entity, **ids)), None, LATEST) == lower


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"[" * 100_000,
        b'{"id": 1}',
        b'{"id":"%s"}' % uid(1).encode(),
        b' {"id":"%s"}' % uid(1).encode(),
    ],
)
def test_what_is_no_row_has_no_canonical_form(value: bytes) -> None:
    assert DECODERS["users"].canonical(value) is None


def test_a_row_of_another_form_is_not_canonical() -> None:
    decoder = DECODERS["users"]
    row = decoder.decode(to_json(good("users", 1)), None, LATEST)
    assert isinstance(row, Decoded)
    assert decoder.canonical(row.row) is not None
    assert decoder.canonical(b" " + row.row) is None
    unknown = row.row.replace(b"{", b'{"more":1,', 1)
    assert decoder.canonical(unknown) is None
