"""The demo's stream: the same for a seed, complete, late in its references, spoiled as promised."""

import itertools
import json
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import pytest

from worker.demo import faults
from worker.demo import record as record_module
from worker.demo.programme import programme
from worker.demo.record import Record
from worker.demo.record_stream import DUPLICATE_GAP, WINDOW, stream

pytestmark = pytest.mark.thorough

NOW = datetime(2025, 11, 22, 10, 30, tzinfo=UTC)
COUNT = 20_000
CODES = {
    "malformed_record", "missing_required_field", "wrong_type", "invalid_uuid",
    "invalid_timestamp", "future_timestamp", "invalid_enum", "rating_out_of_range",
    "number_out_of_range", "text_too_long", "invalid_email", "duplicate_email", "invalid_key",
    "orphaned_user_id", "orphaned_match_id", "orphaned_attendee", "naive_timestamp",
    "email_lowercased",
}  # fmt: skip
TIMES = ("joined_at", "matched_at", "event_date", "attended_at", "completed_at", "scheduled_at",
         "checkin_date", "submitted_at", "reached_at", "ended_at")  # fmt: skip


@pytest.fixture(scope="module")
def good() -> list[Record]:
    return list(programme(400, 7, NOW))


@pytest.fixture(scope="module")
def mixed() -> list[Record]:
    return list(stream(COUNT, 7, NOW))


def row_of(record: Record) -> dict[str, Any]:
    assert record.value is not None
    row = json.loads(record.value)
    assert isinstance(row, dict)
    return row


def references(record: Record) -> set[tuple[str, str]]:
    row = row_of(record)
    found = {("users", row[name]) for name in record_module.USER_REFERENCES if name in row}
    if record.entity != "matches" and "match_id" in row:
        found.add(("matches", row["match_id"]))
    return found


def plain(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if not r.expect and r.value is not None]


# The programme


def test_same_seed_same_bytes_other_seed_other_bytes() -> None:
    first = list(programme(90, 3, NOW))
    assert first == list(programme(90, 3, NOW))
    assert first != list(programme(90, 4, NOW))
    assert list(stream(2_000, 3, NOW)) == list(stream(2_000, 3, NOW))
    assert list(stream(2_000, 3, NOW)) != list(stream(2_000, 4, NOW))


@pytest.mark.parametrize("users", [2, 3, 39, 40, 41, 42, 81, 400])
def test_programme_has_all_entities_and_the_asked_users(users: int) -> None:
    records = list(programme(users, 1, NOW))
    assert {r.entity for r in records} == set(record_module.ENTITIES)
    assert len({r.key for r in records if r.entity == "users"}) == users
    assert len(records) >= 9.5 * users


def test_proportions_are_those_of_the_specification(good: list[Record]) -> None:
    keys = Counter(entity for entity, _ in {(r.entity, r.key) for r in good})
    assert keys == {
        "users": 400, "matches": 300, "events": 1000, "event_attendance": 600,
        "skill_sessions": 200, "checkins": 800, "feedback": 400, "milestones": 100,
    }  # fmt: skip


def test_keys_are_canonical_and_name_their_record(good: list[Record]) -> None:
    for record in plain(good):
        row = row_of(record)
        assert record.key == ":".join(str(row[f]) for f in record_module.KEY_FIELDS[record.entity])
        for field, type_ in record_module.FIELDS[record.entity].items():
            if type_.startswith("uuid") and field in row:
                assert UUID(row[field]).version == 4
                assert str(UUID(row[field])) == row[field]


def test_required_fields_are_there_and_no_unknown_ones(good: list[Record]) -> None:
    optional_seen = set()
    for record in plain(good):
        fields, row = record_module.FIELDS[record.entity], row_of(record)
        assert row.keys() <= fields.keys()
        assert row.keys() >= {name for name, type_ in fields.items() if type_.endswith("!")}
        optional_seen |= {(record.entity, name, name in row) for name in fields}
    for entity, fields in record_module.FIELDS.items():
        for name, type_ in fields.items():
            assert (entity, name, True) in optional_seen
            assert ((entity, name, False) in optional_seen) != type_.endswith("!")


def test_ids_are_unique_but_for_updates_and_deletions(good: list[Record]) -> None:
    versions = Counter((r.entity, r.key) for r in good)
    repeated = {entity for (entity, _), count in versions.items() if count > 1}
    assert repeated == {"users", "matches", "feedback", "milestones"}
    assert max(versions.values()) == 2
    assert sum(count > 1 for count in versions.values()) < 0.05 * len(good)


def test_addresses_are_lower_case_and_stay_with_their_user(good: list[Record]) -> None:
    holders: dict[str, str] = {}
    for record in plain(good):
        if record.entity == "users":
            row = row_of(record)
            assert row["email"] == row["email"].lower()
            assert row["email"].isascii()
            assert holders.setdefault(row["email"], row["id"]) == row["id"]
    assert len(holders) == 400
    names = "".join(row_of(r)["first_name"] for r in good if r.entity == "users")
    assert {"ø", "ل", "О", "ễ", "ñ"} & set(names)


def test_times_span_two_years_and_end_by_now(good: list[Record]) -> None:
    times = [
        datetime.fromisoformat(row[name])
        for row in map(row_of, plain(good))
        for name in TIMES
        if name in row
    ]
    assert max(times) <= NOW
    assert (NOW - max(times)).days <= 7
    assert 700 <= (NOW - min(times)).days <= 731


def test_an_ended_match_says_when_and_why(good: list[Record]) -> None:
    rows = [row_of(r) for r in good if r.entity == "matches"]
    assert {row["status"] for row in rows} == {"active", "inactive", "ended"}
    for row in rows:
        ended = row["status"] == "ended"
        assert ended == ("ended_at" in row) == ("end_reason" in row)
        if ended:
            start, end = (datetime.fromisoformat(row[n]) for n in ("matched_at", "ended_at"))
            assert abs((end - start).days - row["duration_days"]) <= 1


def test_nothing_comes_before_what_it_refers_to(good: list[Record]) -> None:
    known: set[tuple[str, str | None]] = set()
    for record in good:
        if record.value is None:
            assert (record.entity, record.key) in known
            continue
        assert references(record) <= known
        known.add((record.entity, record.key))


def test_attendees_are_people_of_the_match(good: list[Record]) -> None:
    pairs = {r.key: row_of(r) for r in good if r.entity == "matches"}
    for record in good:
        if record.entity == "events":
            row = row_of(record)
            match = pairs[row["match_id"]]
            assert set(row.get("attendees", [])) <= {match["participant_id"], match["buddy_id"]}


def test_only_rows_that_nobody_refers_to_are_deleted(good: list[Record]) -> None:
    assert {r.entity for r in good if r.value is None} == {"feedback", "milestones"}


@pytest.mark.parametrize("users", [-1, 0, 1])
def test_a_programme_needs_two_users(users: int) -> None:
    with pytest.raises(ValueError, match="at least 2 users"):
        next(programme(users, 1, NOW))


def test_now_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        next(programme(2, 1, NOW.replace(tzinfo=None)))


# The stream


@pytest.mark.parametrize("records", [0, 1, 100, 1_000, 5_000, COUNT])
@pytest.mark.parametrize("bad_share", [0.0, 0.03, 0.5])
def test_at_least_as_many_as_asked(records: int, bad_share: float) -> None:
    assert sum(1 for _ in stream(records, 5, NOW, bad_share)) >= records


def test_every_code_is_expected_somewhere(mixed: list[Record]) -> None:
    assert {code for r in mixed for code in r.expect} == CODES


def test_every_kind_takes_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    make = faults.make

    def counting(kind: str, *rest: Any) -> Record:
        made[kind] += 1
        return make(kind, *rest)

    monkeypatch.setattr(faults, "make", counting)
    list(stream(COUNT, 1, NOW))
    assert made.keys() == set(faults.KINDS)
    assert max(made.values()) - min(made.values()) <= 1


def test_about_three_percent_are_bad(mixed: list[Record]) -> None:
    assert 0.02 <= sum(1 for r in mixed if r.expect) / len(mixed) <= 0.05


def test_none_are_bad_if_none_are_asked_for() -> None:
    assert not any(r.expect for r in stream(3_000, 1, NOW, bad_share=0))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_bad_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="bad_share"):
        next(stream(10, 1, NOW, share))


def test_references_of_good_records_exist_in_the_stream(mixed: list[Record]) -> None:
    accepted = {(r.entity, r.key) for r in plain(mixed)}
    for record in plain(mixed):
        assert {(entity, id_.lower()) for entity, id_ in references(record)} <= accepted


def test_references_often_come_late_but_within_the_window(mixed: list[Record]) -> None:
    first: dict[tuple[str, str | None], int] = {}
    for position, record in enumerate(mixed):
        if not record.expect:
            first.setdefault((record.entity, record.key), position)
    late = [
        first[reference] - position
        for position, record in enumerate(mixed)
        if not record.expect and record.value is not None
        for reference in references(record)
        if reference in first  # but for `uppercase_uuid`
    ]
    assert sum(wait > 0 for wait in late) > 0.2 * len(late)
    assert WINDOW / 2 < max(late) < WINDOW


def test_versions_of_a_key_keep_their_order() -> None:
    def versions(records: Iterable[Record]) -> dict[tuple[str, str | None], list[bytes | None]]:
        found: dict[tuple[str, str | None], list[bytes | None]] = {}
        for record in records:
            found.setdefault((record.entity, record.key), []).append(record.value)
        return found

    shuffled = list(stream(8_000, 2, NOW, bad_share=0))
    users = len({r.key for r in shuffled if r.entity == "users"})
    assert versions(shuffled) == versions(programme(users, 2, NOW))


def test_bad_records_disturb_no_good_one(mixed: list[Record]) -> None:
    good_keys = {(r.entity, r.key) for r in mixed if not r.expect}
    rejected = [r for r in mixed if r.expect and r.key is not None]
    assert not {(r.entity, r.key) for r in rejected} & good_keys
    keys = Counter((r.entity, r.key) for r in rejected if r.expect != ("invalid_key",))
    assert set(keys.values()) == {1}


def test_a_second_claim_to_an_address_comes_well_behind_the_first(mixed: list[Record]) -> None:
    first: dict[str, int] = {}
    gaps = []
    for position, record in enumerate(mixed):
        if record.entity != "users":
            continue
        if record.expect == ("duplicate_email",):
            gaps.append(position - first[row_of(record)["email"]])
        elif not record.expect:
            first.setdefault(row_of(record)["email"], position)
    assert len(gaps) > 10
    assert min(gaps) >= DUPLICATE_GAP


def test_a_long_stream_starts_at_once_and_needs_little_memory() -> None:
    tracemalloc.start()
    try:
        for _ in itertools.islice(stream(5_000_000, 1, NOW), 20_000):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 1024 * 1024


# The faults


@pytest.mark.parametrize("kind", faults.KINDS)
def test_a_fault_has_its_own_key_and_leaves_the_good_record_alone(
    kind: str, good: list[Record]
) -> None:
    rng = Random(kind)
    rows: dict[str, list[Record]] = {}
    for record in plain(good):
        rows.setdefault(record.entity, []).append(record)
    for entity in faults.entities_of(kind):
        for record in rng.choices(rows[entity], k=20):
            row = row_of(record)
            bad = faults.make(kind, rng, entity, row, NOW)
            assert row == row_of(record)
            assert bad.entity == entity
            assert bad.key is None or bad.key != record.key
            assert bad.value != record.value
            assert set(bad.expect) <= CODES
            assert len(set(bad.expect)) == len(bad.expect)


def test_malformed_values_are_no_json_objects(mixed: list[Record]) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    for record in mixed:
        if record.expect == ("malformed_record",):
            assert record.key is None
            assert record.value is not None
            try:
                value = json.loads(record.value.decode(), parse_constant=refuse)
                json.dumps(value, ensure_ascii=False).encode()
            except ValueError:
                continue
            assert not isinstance(value, dict)


def test_the_field_table_covers_the_keys() -> None:
    assert set(record_module.FIELDS) == set(record_module.KEY_FIELDS) == set(record_module.ENTITIES)
    for entity, key in record_module.KEY_FIELDS.items():
        assert all(record_module.FIELDS[entity][name].endswith("!") for name in key)
