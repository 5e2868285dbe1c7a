"""The checker of the chaos test finds each kind of fault in a made-up log, none in a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.proofs.chaos.books import digest
from tests.proofs.chaos.checker import LONG_GONE, read_export
from tests.proofs.chaos.entities import SHAPES, key_of
from tests.proofs.chaos.made_up import MAKE, TOPICS, Source, World
from tests.proofs.chaos.recording import Entry, Recording
from tests.proofs.chaos.records import OWN_ERRORS
from tests.proofs.chaos.stream import EXPECTED, Sent, Stream


@pytest.fixture
def world() -> World:
    """Everybody known, a record of each entity accepted, some rejected: all of it right."""
    world = World()
    user, match = world.user(1_000), world.match(1_000)
    for entity, record in (
        ("events", MAKE.event(match["match_id"], [])),
        ("event_attendance", MAKE.attendance(user["id"], match["match_id"])),
        ("skill_sessions", MAKE.session(user["id"], user["id"], None)),
        ("checkins", MAKE.checkin(match["match_id"])),
        ("feedback", MAKE.feedback(match["match_id"])),
        ("milestones", MAKE.milestone(user["id"])),
    ):
        world.accept(world.send(entity, record, 2_000), 2_010)
        world.accept(world.send(entity, MAKE.update(entity, record), 2_020), 2_030)
    orphan = MAKE.milestone(MAKE.id())
    world.reject(world.send("milestones", orphan, 3_000), 7_000, ("orphaned_user_id", "user_id"))
    spoilt = MAKE.feedback(match["match_id"]) | {"rating": 2, EXPECTED: "rating_out_of_range"}
    world.reject(world.send("feedback", spoilt, 3_000), 3_010, ("rating_out_of_range", "rating"))
    late = MAKE.checkin(MAKE.id())
    world.accept(world.send("checkins", late, 3_000), 7_000, warnings="orphaned_match_id")
    gone = world.user(3_000)
    world.accept(world.send_deletion("users", gone["id"], 4_000), 4_010)
    taken = MAKE.user(MAKE.id(), user["email"])
    world.reject(world.send("users", taken, 5_000), 5_010, ("duplicate_email", "email"))
    return world


def test_a_good_log_is_clean(world: World) -> None:
    report = world.report()
    assert report.clean, list(report.lines())
    assert report.counts["rejected: orphaned_user_id"] == 1
    assert report.counts["deleted: users"] == 1
    assert "clean" in list(report.lines())[-1]


def test_a_lost_record(world: World) -> None:
    world.send("users", MAKE.user(MAKE.id(), "lost@example.org"), 9_000)
    report = world.report()
    assert dict(report.violations) == {"no_outcome": 1}
    assert report.texts("no_outcome") == ["buddy.in.users/0/6"]


def test_a_lost_deletion(world: World) -> None:
    world.send_deletion("checkins", MAKE.id(), 9_000)
    assert world.found() == {"no_outcome": 1}


def test_two_outcomes_of_one_record(world: World) -> None:
    sent = world.send("users", MAKE.user(MAKE.id(), "twice@example.org"), 9_000)
    world.accept(sent, 9_010)
    world.accept(sent, 9_020)
    assert world.found() == {"two_outcomes": 1, "order": 1}


def test_accepted_and_rejected(world: World) -> None:
    sent = world.send("milestones", MAKE.milestone(MAKE.id()), 9_000)
    world.accept(sent, 9_010)
    world.reject(sent, 19_010, ("orphaned_user_id", "user_id"))
    del world.exported["milestones"][sent[4].decode()]
    assert world.found() == {"two_outcomes": 1, "user_not_known": 1}


@pytest.mark.parametrize("source", ["", "buddy.in.users/0/999", "buddy.in.matches/0/0", "nonsense"])
def test_an_outcome_without_an_input(world: World, source: str) -> None:
    record = MAKE.user(MAKE.id(), "made-up@example.org")
    world.write(
        TOPICS.accepted["users"], 9_000, record["id"].encode(), json.dumps(record).encode(),
        source=source,
    )  # fmt: skip
    assert world.found() == {"no_input": 1}


def test_versions_of_a_key_in_another_order(world: World) -> None:
    record = MAKE.user(MAKE.id(), "order@example.org")
    first, second = world.send("users", record, 9_000), world.send("users", record, 9_000)
    world.accept(second, 9_010)
    world.accept(first, 9_020)
    assert world.found() == {"order": 1}


def test_a_deletion_overtaken_by_what_was_before(world: World) -> None:
    record = MAKE.user(MAKE.id(), "order@example.org")
    first = world.send("users", record, 9_000)
    deletion = world.send_deletion("users", record["id"], 9_000)
    world.accept(deletion, 9_010)
    world.accept(first, 9_020)
    assert world.found() == {"order": 1}


def test_a_row_in_another_partition(world: World) -> None:
    record = MAKE.user(MAKE.id(), "elsewhere@example.org")
    world.accept(world.send("users", record, 9_000), 9_010, partition=1)
    assert world.found() == {"other_partition": 1}


def test_a_row_that_is_not_what_was_sent(world: World) -> None:
    record = MAKE.user(MAKE.id(), "other@example.org")
    world.accept(world.send("users", record, 9_000), 9_010, row=MAKE.update("users", record))
    assert world.found() == {"other_content": 1}


def test_a_deletion_accepted_as_a_row_and_a_row_as_a_deletion(world: World) -> None:
    record = MAKE.user(MAKE.id(), "row@example.org")
    entity, partition, offset, _, key = world.send("users", record, 9_000)
    world.accept((entity, partition, offset, None, key), 9_010)
    assert world.found() == {"other_content": 1}


def test_a_rejection_that_does_not_hold_what_was_sent(world: World) -> None:
    sent = world.send("milestones", MAKE.milestone(MAKE.id()), 9_000)
    world.reject(sent, 19_000, ("orphaned_user_id", "user_id"), record={"milestone_id": 1})
    assert world.found() == {"other_content": 1}


def test_a_rejection_that_names_another_source(world: World) -> None:
    sent = world.send("milestones", MAKE.milestone(MAKE.id()), 9_000)
    world.reject(
        sent, 19_000, ("orphaned_user_id", "user_id"),
        source={"topic": TOPICS.inputs["milestones"], "partition": 0, "offset": 0},
    )  # fmt: skip
    assert world.found() == {"other_source": 1}


def test_a_rejection_that_cannot_be_read(world: World) -> None:
    _, _, offset, _, key = world.send("milestones", MAKE.milestone(MAKE.id()), 9_000)
    source = f"{TOPICS.inputs['milestones']}/0/{offset}"
    world.write(TOPICS.rejected["milestones"], 9_010, key, b"{}", source=source)
    assert "unreadable" in world.found()


@pytest.mark.parametrize(
    "errors", [(("internal_error", ""),), (("invalid_enum", "role"), ("orphaned_user_id", "id"))]
)
def test_a_rejection_for_no_reason(world: World, errors: tuple[tuple[str, str], ...]) -> None:
    world.reject(world.send("users", MAKE.user(MAKE.id(), "a@b.c"), 9_000), 9_010, *errors)
    assert world.found() == {"other_verdict": 1}


def test_a_deletion_rejected(world: World) -> None:
    sent = world.send_deletion("checkins", MAKE.id(), 9_000)
    world.reject(sent, 9_010, ("invalid_key", ""))
    assert world.found() == {"deletion_rejected": 1}


def test_an_own_error_overlooked(world: World) -> None:
    record = MAKE.user(MAKE.id(), "spoilt@example.org") | {EXPECTED: "invalid_enum"}
    world.accept(world.send("users", record, 9_000), 9_010)
    assert world.found() == {"not_rejected": 1}


def test_malformed_records_by_their_bytes(world: World) -> None:
    entry = world.write(TOPICS.inputs["checkins"], 9_000, b"k", b'{"x')
    sent: Source = ("checkins", 0, entry.offset, None, b"k")
    world.reject(sent, 9_010, ("malformed_record", ""), record_base64="eyJ4")
    assert world.found() == {}
    entry = world.write(TOPICS.inputs["checkins"], 9_000, b"k", b'{"y')
    sent = ("checkins", 0, entry.offset, None, b"k")
    world.reject(sent, 9_010, ("malformed_record", ""), record_base64="eyJ4")
    assert world.found() == {"other_content": 1}


# --- references -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrived", "accepted", "wrong"),
    [
        (9_500, 9_600, True),  # known within the grace
        (12_900, 30_000, True),  # had come within the grace: the verdict had to wait for it
        (13_100, 13_200, False),  # came after the grace
    ],
)
def test_an_orphan_whose_user_was_there(
    world: World, arrived: int, accepted: int, wrong: bool
) -> None:
    user = MAKE.user(MAKE.id(), "late@example.org")
    sent = world.send("milestones", MAKE.milestone(user["id"]), 10_000)
    world.accept(world.send("users", user, arrived), accepted)
    world.reject(sent, 20_000, ("orphaned_user_id", "user_id"))
    assert world.found() == ({"orphan_in_time": 1} if wrong else {})


@pytest.mark.parametrize(
    ("user_came", "clocks_wrong", "found"),
    [
        (10_500, (10_200, 10_400), {}),  # the grace may seem to be over
        (9_500, (10_200, 10_400), {"orphan_in_time": 1}),  # who came before the record counts
        (10_500, (8_000, 9_900), {"orphan_in_time": 1}),  # right again before the record came
        (10_500, (11_100, 12_000), {"orphan_in_time": 1}),  # wrong only after the verdict
    ],
)
def test_an_orphan_before_its_time_is_excused_by_a_wrong_clock_alone(
    world: World, user_came: int, clocks_wrong: tuple[int, int], found: dict[str, int]
) -> None:
    user = MAKE.user(MAKE.id(), "late@example.org")
    sent = world.send("milestones", MAKE.milestone(user["id"]), 10_000)
    world.accept(world.send("users", user, user_came), 11_500)
    world.reject(sent, 11_000, ("orphaned_user_id", "user_id"))
    assert world.found(clocks_wrong=[clocks_wrong]) == found


def test_an_orphan_whose_user_was_deleted_in_between(world: World) -> None:
    user = world.user(9_000)
    world.accept(world.send_deletion("users", user["id"], 9_500), 9_510)
    sent = world.send("milestones", MAKE.milestone(user["id"]), 10_000)
    world.reject(sent, 20_000, ("orphaned_user_id", "user_id"))
    assert world.found() == {}


def test_an_orphan_whose_user_was_deleted_only_later(world: World) -> None:
    user = world.user(9_000)
    sent = world.send("milestones", MAKE.milestone(user["id"]), 10_000)
    world.reject(sent, 20_000, ("orphaned_user_id", "user_id"))
    world.accept(world.send_deletion("users", user["id"], 50_000), 50_010)
    assert world.found() == {"orphan_in_time": 1}


def test_a_warning_about_a_match_that_was_there(world: World) -> None:
    match = world.match(9_000)
    checkin = world.send("checkins", MAKE.checkin(match["match_id"]), 10_000)
    world.accept(checkin, 20_000, warnings="naive_timestamp,orphaned_match_id")
    assert world.found() == {"orphan_in_time": 1}


def test_a_row_before_its_user(world: World) -> None:
    user = MAKE.user(MAKE.id(), "after@example.org")
    world.accept(world.send("milestones", MAKE.milestone(user["id"]), 9_000), 9_010)
    world.accept(world.send("users", user, 9_000, 1), 9_020)
    assert world.found() == {"user_not_known": 1}


def test_in_one_transaction_the_order_says_nothing(world: World) -> None:
    user = MAKE.user(MAKE.id(), "together@example.org")
    world.accept(world.send("milestones", MAKE.milestone(user["id"]), 9_000), 9_010, round="one")
    world.accept(world.send("users", user, 9_000, 1), 9_020, round="one")
    other = MAKE.user(MAKE.id(), "other@example.org")
    world.accept(world.send("milestones", MAKE.milestone(other["id"]), 9_000), 9_010, round="one")
    world.accept(world.send("users", other, 9_000, 1), 9_020, round="two")
    assert world.found() == {"user_not_known": 1}


def test_in_one_transaction_an_address_goes_from_hand_to_hand(world: World) -> None:
    first = world.user(9_000, "one@example.org")
    second = MAKE.user(MAKE.id(), "one@example.org")
    world.accept(world.send("users", second, 9_500, 1), 9_510, round="one")
    moved = first | {"email": "two@example.org"}
    world.accept(world.send("users", moved, 9_500), 9_520, round="one")
    assert world.found() == {}


def test_a_row_of_a_user_deleted_long_before(world: World) -> None:
    user = world.user(9_000)
    world.accept(world.send_deletion("users", user["id"], 9_500), 9_510)
    record = MAKE.milestone(user["id"])
    world.accept(world.send("milestones", record, 9_600 + LONG_GONE), 9_700 + LONG_GONE)
    del world.exported["milestones"][key_of("milestones", record)]
    assert world.found() == {"user_long_gone": 1}


# --- addresses --------------------------------------------------------------------------------


def test_two_holders_of_one_address(world: World) -> None:
    world.user(9_000, "one@example.org")
    world.user(9_000, "one@example.org", partition=1)
    assert world.found() == {"two_holders": 1, "two_holders_at_once": 1}


def test_two_holders_for_a_moment(world: World) -> None:
    first = world.user(9_000, "one@example.org")
    world.user(9_500, "one@example.org", partition=1)
    moved = first | {"email": "two@example.org"}
    world.accept(world.send("users", moved, 9_600), 9_600)
    assert world.found() == {"two_holders_at_once": 1}


def test_an_address_handed_over(world: World) -> None:
    first = world.user(9_000, "one@example.org")
    world.accept(world.send("users", first | {"email": "two@example.org"}, 9_500), 9_500)
    second = world.user(9_500, "one@example.org", partition=1)
    world.accept(world.send_deletion("users", first["id"], 9_600), 9_600)
    world.user(9_700, "two@example.org", partition=1)
    world.accept(world.send("users", MAKE.update("users", second), 9_800, 1), 9_800)
    assert world.found() == {}


def test_a_free_address_refused(world: World) -> None:
    world.reject(
        world.send("users", MAKE.user(MAKE.id(), "free@example.org"), 9_000), 9_010,
        ("duplicate_email", "email"),
    )  # fmt: skip
    assert world.found() == {"free_address_refused": 1}


# --- at the end -------------------------------------------------------------------------------


def test_something_still_parked(world: World) -> None:
    world.write(TOPICS.parked, 9_000, b"users/0/1", b"x")
    world.write(TOPICS.parked, 9_000, b"users/0/2", b"x")
    world.write(TOPICS.parked, 9_100, b"users/0/1", None)
    report = world.report()
    assert dict(report.violations) == {"still_parked": 1}
    assert report.texts("still_parked") == ["users/0/2"]


def test_something_still_held(world: World) -> None:
    held = b'{"next":{},"judged":{},"held":{"events":{"17":[4],"18":[5,7]}}}'
    world.write(TOPICS.progress, 9_000, b"0", held)
    assert world.report().texts("still_parked") == [f"events/0/{at}" for at in (4, 5, 7)]
    world.write(TOPICS.progress, 9_100, b"0", b'{"next":{},"judged":{}}')
    report = world.report()
    assert not report.violations
    assert report.counts["ever parked"] == 3


def test_an_export_unanswered(world: World) -> None:
    world.write(TOPICS.export_requests, 9_000, b"one", b"{}")
    world.write(TOPICS.export_requests, 9_000, b"two", b"{}")
    for status, request in (("started", "one"), ("started", "two"), ("finished", "one")):
        answer = json.dumps({"status": status, "request_id": request}).encode()
        world.write(TOPICS.exports, 9_100, b"x", answer)
    report = world.report()
    assert dict(report.violations) == {"export_unanswered": 1}
    assert report.texts("export_unanswered") == ["two"]


def _drop(rows: dict[str, bytes]) -> None:
    rows.popitem()


def _invent(rows: dict[str, bytes]) -> None:
    rows["made-up"] = b""


def _change(rows: dict[str, bytes]) -> None:
    rows[next(iter(rows))] = b""


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(_drop, "not_exported"), (_invent, "exported_without_row"), (_change, "exported_otherwise")],
)
@pytest.mark.parametrize("entity", SHAPES)
def test_an_export_that_is_not_the_accepted_rows(
    world: World, entity: str, spoil: Callable[[dict[str, bytes]], None], kind: str
) -> None:
    spoil(world.exported[entity])
    assert world.found() == {kind: 1}


def test_rows_of_a_user_who_is_gone_must_not_be_exported(world: World) -> None:
    user = world.user(9_000)
    record = MAKE.milestone(user["id"])
    world.accept(world.send("milestones", record, 9_000), 9_010)
    world.accept(world.send_deletion("users", user["id"], 9_500), 9_510)
    assert world.found() == {"exported_without_row": 1}
    del world.exported["milestones"][key_of("milestones", record)]
    assert world.found() == {}


def test_what_compaction_took_is_told_from_what_was_lost(world: World) -> None:
    record = MAKE.user(MAKE.id(), "compacted@example.org")
    first, second = world.send("users", record, 9_000), world.send("users", record, 9_100)
    world.accept(second, 9_110, skip=1)  # where the first stood is a gap
    assert first[2] < second[2]
    assert world.found() == {"no_outcome": 1}
    assert world.found(compacted=True) == {}
    world.send("users", MAKE.user(MAKE.id(), "lost@example.org"), 9_200)
    assert world.found(compacted=True) == {"no_outcome": 1}


def test_who_held_an_address_is_not_to_be_told_where_compaction_took_the_row(world: World) -> None:
    holder = MAKE.user(MAKE.id(), "taken@example.org")
    world.send("users", holder, 9_000)
    moved = world.send("users", holder | {"email": "new@example.org"}, 9_100)
    world.accept(moved, 9_110, skip=1)
    world.reject(
        world.send("users", MAKE.user(MAKE.id(), "taken@example.org"), 9_050), 9_060,
        ("duplicate_email", "email"),
    )  # fmt: skip
    assert world.found() == {"no_outcome": 1, "free_address_refused": 1}
    assert world.found(compacted=True) == {}


def test_without_a_gap_nothing_was_compacted_away(world: World) -> None:
    record = MAKE.user(MAKE.id(), "kept@example.org")
    world.send("users", record, 9_000)
    world.accept(world.send("users", record, 9_100), 9_110)
    assert world.found(compacted=True) == {"no_outcome": 1}


# --- the rest of the kit ----------------------------------------------------------------------


def test_reading_an_export(tmp_path: Path) -> None:
    user = MAKE.user(MAKE.id(), "a@b.c")
    content: dict[str, Any] = {"export_metadata": {}} | {entity: [] for entity in SHAPES}
    content["users"] = [user]
    document = tmp_path / "export.json"
    document.write_text(json.dumps(content))
    assert read_export(document)["users"] == {user["id"]: digest(dict(reversed(user.items())))}
    content["users"] = [user, user]
    document.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="twice"):
        read_export(document)


def test_a_recording_gives_back_what_it_was_given(tmp_path: Path) -> None:
    recording = Recording(tmp_path)
    entries = [Entry(0, n, 5, b"k", None if n % 2 else b"v", (("h", b"1"),)) for n in range(5)]
    recording.append("t", entries[:2])
    recording.append("t", entries[2:])
    assert list(recording.read("t")) == entries
    assert recording.counts["t"] == 5
    assert list(recording.read("other")) == []


@pytest.mark.thorough
def test_a_stream_is_the_same_for_one_seed_and_has_everything() -> None:
    def sent(seed: int) -> list[Sent]:
        stream = Stream(seed, grace=3, contested=True)
        records = [record for n in range(50) for record in stream.take(n / 10, 100)]
        return records + stream.rest()

    records = sent(1)
    assert records == sent(1) != sent(2)
    assert {record.entity for record in records} == set(SHAPES)
    assert any(record.value is None for record in records)
    values = b"".join(record.value or b"" for record in records)
    for code in OWN_ERRORS:
        assert f'"{EXPECTED}":"{code}"'.encode() in values
