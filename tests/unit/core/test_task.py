"""A task from batch to decision: parking and release, isolation, counts and headers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest

from schemas import ENTITIES
from tests.unit.core_kit import GRACE, NOW, World, good, uid
from worker.core.columns import ColumnDecoder
from worker.core.decode import RecordDecoder
from worker.core.violations import Code

CHAIN = [
    ("users", good("users", 1)),
    ("users", good("users", 2)),
    ("matches", good("matches", 1)),
    ("checkins", good("checkins", 1)),
]


@pytest.mark.parametrize("order", list(permutations(range(4))))
@pytest.mark.parametrize("together", [True, False])
def test_a_chain_is_accepted_in_whatever_order_it_comes(
    order: tuple[int, ...], together: bool
) -> None:
    world = World(partitions=2)
    sent = []
    for number in order:
        sent.append(world.send(*CHAIN[number]))
        if not together:
            world.round()
    world.settle()
    assert [world.kind(one) for one in sent] == ["accepted"] * 4
    assert [outcome.codes for found in world.outcomes().values() for outcome in found] == [()] * 4
    assert world.parked == [{}, {}]


@pytest.mark.parametrize("entity", list(ENTITIES)[1:])
def test_a_record_of_any_entity_waits_for_what_it_refers_to(entity: str) -> None:
    world = World()
    sent = world.send(entity, good(entity, 7))
    world.settle()
    assert world.kind(sent) == "open"
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    world.send("matches", good("matches", 1))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_optional_references_that_are_absent_are_not_waited_for() -> None:
    world = World()
    world.send("users", good("users", 1))
    sent = world.send("event_attendance", good("event_attendance", 7))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_optional_references_that_are_there_are_waited_for() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    sent = world.send("event_attendance", good("event_attendance", 7, match_id=uid(1)))
    world.settle()
    assert world.kind(sent) == "open"
    world.send("matches", good("matches", 1))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_a_record_that_waits_for_several_waits_for_all_of_them() -> None:
    world = World()
    sent = world.send("skill_sessions", good("skill_sessions", 5, match_id=uid(1)))
    for entity, number in (("users", 1), ("users", 2), ("matches", 1)):
        world.settle()
        assert world.kind(sent) == "open"
        world.send(entity, good(entity, number))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_references_compare_whatever_the_case() -> None:
    world = World()
    sent = world.send("checkins", good("checkins", 5, match_id=uid(1).upper()))
    world.send("matches", good("matches", 1, match_id=uid(1).upper(), buddy_id=uid(2).upper()))
    world.send("users", good("users", 1))
    world.send("users", good("users", 2, id=uid(2).upper()))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_only_accepted_rows_count_as_known() -> None:
    world = World()
    world.send("users", good("users", 1, role="king"))
    sent = world.send("milestones", good("milestones", 5))
    world.settle()
    assert world.kind(sent) == "open"


def test_within_one_batch_users_count_before_matches_before_the_others() -> None:
    world = World()
    for entity, record in reversed(CHAIN):
        world.send(entity, record)
    decision = world.round()[0]
    assert not decision.tally.parked
    assert decision.tally.accepted == {"users": 2, "matches": 1, "checkins": 1}


def test_the_arrival_of_a_parked_record_is_kept() -> None:
    world = World()
    late = "2026-01-01T00:01:00.001Z"  # in the future when it arrives, no more when it is released
    future = world.send("milestones", good("milestones", 5, reached_at=late))
    edge = world.send("milestones", good("milestones", 6, reached_at="2026-01-01T00:01:00Z"))
    world.round()
    world.now += GRACE // 2
    world.send("users", good("users", 1))
    world.settle()
    assert (world.kind(future), world.kind(edge)) == ("rejected", "accepted")


def test_arrival_is_the_append_time_however_late_the_worker_comes() -> None:
    world = World()
    stamp = "2026-01-01T00:01:00.001Z"
    sent = world.send("users", good("users", 1, joined_at=stamp))
    world.now += 3_600_000
    world.settle()
    found = world.outcome(sent)
    assert found is not None
    assert found.codes == ("future_timestamp",)


def test_arrival_is_the_clock_where_the_producer_set_the_time() -> None:
    world = World()
    old = world.send(
        "users",
        good("users", 1, joined_at="2026-01-01T00:01:00Z"),
        timestamp=0,
        appended=False,
    )
    new = world.send(
        "users",
        good("users", 2, joined_at="2026-01-01T00:01:00.001Z"),
        timestamp=NOW + 10**9,
        appended=False,
    )
    world.settle()
    assert (world.kind(old), world.kind(new)) == ("accepted", "rejected")


def test_an_accepted_row_has_its_headers() -> None:
    world = World()
    world.now += 1
    sent = world.send("users", good("users", 1))
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert outcome.message.headers == (
        ("buddy-source", sent.encode()),
        ("buddy-accepted-at", b"2026-01-01T00:00:00.001000Z"),
    )
    assert outcome.message.topic == "buddy.accepted.users"
    assert outcome.message.key == uid(1).encode()
    assert outcome.message.partition is None  # Kafka's default partitioner places it


def test_warnings_stand_on_the_headers_each_code_once_in_column_order() -> None:
    world = World()
    record = good("users", 1, email="A@Example.org", joined_at="2024-01-15T10:00:00")
    sent = world.send("users", record)
    world.send("users", good("users", 2))
    world.send("matches", good("matches", 1))
    event = good("events", 1, event_date="2024-01-15 10:00:00", attendees=["x", uid(1), "y"])
    warned = world.send("events", event)
    world.settle()
    user, attended = world.outcome(sent), world.outcome(warned)
    assert user is not None
    assert attended is not None
    assert user.codes == ("email_lowercased", "naive_timestamp")
    assert attended.codes == ("naive_timestamp", "orphaned_attendee")


def test_attendees_are_compared_in_any_case_and_never_waited_for() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    world.send("matches", good("matches", 1))
    world.settle()
    known = world.send("events", good("events", 1, attendees=[uid(1).upper(), uid(2)]))
    unknown = world.send("events", good("events", 2, attendees=[uid(3), "Ann", "", uid(4)]))
    decision = world.round()[0]
    found = [world.outcome(one) for one in (known, unknown)]
    assert [outcome.codes for outcome in found if outcome] == [(), ("orphaned_attendee",)]
    counted = decision.tally.violations
    assert counted == {("events", "attendees", Code.ORPHANED_ATTENDEE): 4}


def test_attendees_are_looked_at_when_the_row_is_accepted() -> None:
    world = World()
    sent = world.send("events", good("events", 1, attendees=[uid(3)]))
    world.round()
    world.send("users", good("users", 3))
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    world.send("matches", good("matches", 1))
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert (outcome.kind, outcome.codes) == ("accepted", ())


def test_everything_is_counted_by_entity() -> None:
    world = World()
    world.send("users", good("users", 1, shoe_size=1, pet="x"))
    world.send("users", good("users", 2, role="king", email="?", more=1))
    world.delete("users", uid(9))
    world.send("milestones", good("milestones", 1, user_id=uid(5), surplus=1))
    world.send("milestones", good("milestones", 2, surplus=1))
    tally = world.round()[0].tally
    assert tally.read == {"users": 3, "milestones": 2}
    assert tally.accepted == {"users": 1, "milestones": 1}
    assert tally.deleted == {"users": 1}
    assert tally.rejected == {"users": 1}
    assert tally.parked == {"milestones": 1}
    assert tally.unknown_fields == {"users": 2, "milestones": 1}
    assert tally.violations == {
        ("users", "role", Code.INVALID_ENUM): 1,
        ("users", "email", Code.INVALID_EMAIL): 1,
    }
    assert tally.arrivals.total() == 4


def test_a_record_too_large_to_be_kept_is_named() -> None:
    world = World()
    sent = world.send("users", b"x" * 2_000_000)
    tally = world.round()[0].tally
    assert tally.records_omitted == [sent]
    assert world.kind(sent) == "rejected"


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on records that hold this word cannot be judged."""
    decode, decode_batch = RecordDecoder.decode, ColumnDecoder.decode

    def failing(self: RecordDecoder, value: bytes | None, *others: Any) -> Any:
        if value is not None and b"poison" in value:
            raise ZeroDivisionError("personal data")
        return decode(self, value, *others)

    def failing_batch(self: ColumnDecoder, values: Sequence[bytes | None], *others: Any) -> Any:
        if any(value is not None and b"poison" in value for value in values):
            raise ZeroDivisionError("personal data")
        return decode_batch(self, values, *others)

    monkeypatch.setattr(RecordDecoder, "decode", failing)
    monkeypatch.setattr(ColumnDecoder, "decode", failing_batch)


def test_a_record_that_cannot_be_judged_is_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)
    world = World()
    before = world.send("users", good("users", 1))
    bad = world.send("users", good("users", 2, first_name="poison"))
    after = world.send("users", good("users", 3))
    tally = world.round()[0].tally
    assert [world.kind(one) for one in (before, bad, after)] == ["accepted", "rejected", "accepted"]
    outcome = world.outcome(bad)
    assert outcome is not None
    assert outcome.codes == ("internal_error",)
    assert outcome.fields == ("",)
    assert outcome.message.value is not None
    assert b"personal data" not in outcome.message.value
    assert tally.failures == [(bad, "ZeroDivisionError")]


def test_a_parked_record_that_cannot_be_judged_after_a_restart_is_isolated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    bad = world.send("milestones", good("milestones", 1, milestone_title="poison"))
    fine = world.send("milestones", good("milestones", 2))
    world.round()
    poison(monkeypatch)
    world.tasks[0] = world.restored(0)
    world.send("users", good("users", 1))
    world.settle()
    outcome = world.outcome(bad)
    assert outcome is not None
    assert outcome.codes == ("internal_error",)
    assert world.kind(fine) == "accepted"
    assert world.parked == [{}]


def test_a_parked_record_that_newer_rules_refuse_is_rejected_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    parked = world.send("milestones", good("milestones", 1, milestone_title="text"))
    world.round()
    monkeypatch.setattr(
        RecordDecoder,
        "decode",
        lambda self, value, key, latest: self._malformed("expected otherwise", key),
    )
    monkeypatch.setattr(ColumnDecoder, "_read", lambda self, values: ([], set(range(len(values)))))
    world.tasks[0] = world.restored(0)
    world.settle()
    assert world.kind(parked) == "rejected"
    assert world.parked == [{}]
