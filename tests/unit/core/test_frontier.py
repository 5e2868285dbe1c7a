"""Nobody is called an orphan while what it refers to may still be on its way."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.unit.core_kit import GRACE, World, good, owned, uid
from worker.core.frontier import Frontier
from worker.stream import Partition

USERS_0, USERS_1 = Partition("in.users", 0), Partition("in.users", 1)
ROWS = Partition("accepted.users", 0)


def rounds(world: World, only: Iterable[int] | None = None, times: int = 6) -> None:
    for _ in range(times):
        world.round(only=only)


def told(world: World, sent: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    outcome = world.outcome(sent)
    assert outcome is not None
    return outcome.kind, outcome.codes, outcome.fields


# --- the frontier itself --------------------------------------------------------------------------


def test_a_barrier_passes_once_all_is_judged_and_its_outcomes_are_followed() -> None:
    frontier = Frontier({USERS_0: 5, USERS_1: 0}, covers_matches=False)
    assert frontier.advance({USERS_0: 4}) == [USERS_0]
    assert not frontier.needs_accepted_ends
    frontier.follow({ROWS: 100})
    assert not frontier.passed
    assert frontier.advance({USERS_0: 5}) == []
    assert frontier.needs_accepted_ends
    frontier.follow({ROWS: 100})
    assert not frontier.passed
    frontier.note_accepted_ends({ROWS: 7})
    assert not frontier.needs_accepted_ends
    frontier.follow({ROWS: 6})
    assert not frontier.passed
    frontier.follow({ROWS: 7})
    assert frontier.passed


def test_a_barrier_never_goes_back() -> None:
    frontier = Frontier({USERS_0: 5, USERS_1: 5}, covers_matches=False)
    assert frontier.advance({USERS_0: 5, USERS_1: 0}) == [USERS_1]
    assert frontier.advance({USERS_0: 0, USERS_1: 0}) == [USERS_1]
    assert frontier.advance({USERS_1: 9}) == []
    frontier.note_accepted_ends({})
    frontier.follow({})
    frontier.follow({ROWS: 0})
    assert frontier.passed


def test_empty_partitions_do_not_block_a_frontier() -> None:
    frontier = Frontier({USERS_0: 0, USERS_1: 0}, covers_matches=False)
    assert frontier.advance({}) == []
    assert frontier.needs_accepted_ends


# --- verdicts -------------------------------------------------------------------------------------


def test_before_the_grace_has_ended_nothing_is_decided() -> None:
    world = World()
    sent = world.send("milestones", good("milestones", 5))
    world.settle()
    world.now += GRACE - 1
    rounds(world)
    assert world.kind(sent) == "open"
    world.now += 1
    rounds(world)
    assert told(world, sent) == ("rejected", ("orphaned_user_id",), ("user_id",))


def test_the_grace_counts_from_the_first_reading_over_a_restart() -> None:
    world = World()
    sent = world.send("milestones", good("milestones", 5))
    world.now += 10 * GRACE
    world.round()
    world.now += GRACE - 1
    world.tasks[0] = world.restored(0)
    rounds(world)
    assert world.kind(sent) == "open"
    world.now += 1
    rounds(world)
    assert world.kind(sent) == "rejected"


@pytest.mark.parametrize("grace", [GRACE, 0])
@pytest.mark.parametrize("lagging", ["users unread", "user waits for its address"])
def test_nobody_is_an_orphan_while_a_user_before_the_barrier_is_not_judged(
    grace: int, lagging: str
) -> None:
    world = World(partitions=3, grace=grace)
    place, owner = (1, 1) if lagging == "users unread" else (2, 1)
    sent = world.send("milestones", good("milestones", 5), partition=0)
    world.send("users", good("users", 1, email=owned(owner, 3)), partition=place)
    world.now += 100 * GRACE + 1
    rounds(world, only=[0, 2], times=10)
    assert world.kind(sent) == "open"
    world.settle()
    assert world.kind(sent) == "accepted"


def test_a_user_sent_after_the_barrier_was_noted_is_too_late_if_the_verdict_has_fallen() -> None:
    world = World()
    sent = world.send("milestones", good("milestones", 5))
    world.finish()
    world.send("users", good("users", 1))
    world.settle()
    assert told(world, sent) == ("rejected", ("orphaned_user_id",), ("user_id",))


def test_a_user_sent_within_the_grace_is_never_too_late() -> None:
    world = World(partitions=2)
    sent = world.send("milestones", good("milestones", 5), partition=0)
    world.round()
    world.now += GRACE
    world.send("users", good("users", 1), partition=1)
    rounds(world, only=[0], times=10)
    world.now += 10 * GRACE
    world.settle()
    assert world.kind(sent) == "accepted"


def test_an_orphan_of_a_match_alone_is_accepted_with_a_warning() -> None:
    world = World(partitions=2)
    world.send("users", good("users", 1))
    sent = [
        world.send("checkins", good("checkins", 5)),
        world.send("event_attendance", good("event_attendance", 5, match_id=uid(8))),
    ]
    world.finish()
    for one in sent:
        kind, codes, _ = told(world, one)
        assert (kind, codes) == ("accepted", ("orphaned_match_id",))


def test_orphans_of_users_and_match_are_all_listed_in_column_order() -> None:
    world = World()
    record = good("skill_sessions", 5, match_id=uid(8), completed_at="2024-01-15T10:00:00")
    sent = world.send("skill_sessions", record)
    world.finish()
    assert told(world, sent) == (
        "rejected",
        ("orphaned_user_id", "orphaned_user_id", "orphaned_match_id", "naive_timestamp"),
        ("teacher_id", "learner_id", "match_id", "completed_at"),
    )


def test_only_what_is_missing_is_called_an_orphan() -> None:
    world = World()
    world.send("users", good("users", 2))
    sent = world.send("matches", good("matches", 1))
    world.finish()
    assert told(world, sent) == ("rejected", ("orphaned_user_id",), ("participant_id",))


def test_attendees_of_a_row_accepted_after_the_barrier_are_warned_of_as_well() -> None:
    world = World()
    sent = world.send("events", good("events", 5, attendees=[uid(7)]))
    world.finish()
    kind, codes, _ = told(world, sent)
    assert (kind, codes) == ("accepted", ("orphaned_match_id", "orphaned_attendee"))


def test_a_checkin_waits_for_the_verdict_on_a_match_that_is_itself_parked() -> None:
    world = World(partitions=3)
    checkin = world.send("checkins", good("checkins", 5), partition=0)
    match = world.send("matches", good("matches", 1), partition=1)
    world.round()
    world.send("users", good("users", 1), partition=1)
    world.send("users", good("users", 2), partition=2)  # nobody reads partition 2
    world.now += 10 * GRACE
    rounds(world, only=[0, 1], times=20)
    assert [world.kind(checkin), world.kind(match)] == ["open", "open"]
    world.settle()
    assert [told(world, one)[:2] for one in (checkin, match)] == [("accepted", ())] * 2


def test_a_checkin_of_a_match_that_turns_out_an_orphan_is_accepted_with_a_warning() -> None:
    world = World(partitions=2)
    checkin = world.send("checkins", good("checkins", 5), partition=0)
    match = world.send("matches", good("matches", 1), partition=1)
    world.finish()
    assert world.kind(match) == "rejected"
    assert told(world, checkin)[:2] == ("accepted", ("orphaned_match_id",))


def test_matches_are_judged_up_to_the_lowest_that_is_parked() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("matches", good("matches", 1, buddy_id=uid(1)))
    world.send("matches", good("matches", 2, buddy_id=uid(9)))
    world.send("matches", good("matches", 3, buddy_id=uid(1)))
    world.settle()
    assert (world.judged()["users"], world.judged()["matches"]) == (1, 1)
    world.finish()
    assert (world.judged()["users"], world.judged()["matches"]) == (1, 3)


def test_parked_matches_do_not_hold_up_verdicts_that_depend_on_users_alone() -> None:
    world = World(partitions=2)
    world.send("matches", good("matches", 1, buddy_id=uid(9)), partition=0)
    milestone = world.send("milestones", good("milestones", 5, user_id=uid(8)), partition=0)
    world.round()
    world.now += GRACE
    world.send("matches", good("matches", 2, buddy_id=uid(9)), partition=0)  # parked from now on
    rounds(world)
    assert world.judged()["matches"] == 1
    assert world.kind(milestone) == "rejected"


def test_a_reference_deleted_while_its_record_waits_for_another_is_an_orphan_too() -> None:
    world = World()
    world.send("users", good("users", 1))
    sent = world.send("matches", good("matches", 1))
    world.settle()
    world.delete("users", uid(1))
    world.finish()
    assert told(world, sent) == (
        "rejected",
        ("orphaned_user_id", "orphaned_user_id"),
        ("participant_id", "buddy_id"),
    )


def test_a_reference_deleted_after_the_barrier_was_noted_gets_the_record_a_verdict_too() -> None:
    world = World()
    world.send("users", good("users", 1))
    sent = world.send("matches", good("matches", 1))
    world.settle()
    world.now += GRACE
    world.delete("users", uid(1))
    world.send("users", good("users", 2))
    rounds(world)
    world.finish()
    assert told(world, sent) == ("rejected", ("orphaned_user_id",), ("participant_id",))


def test_queued_records_get_their_verdicts_after_the_one_before_them() -> None:
    world = World()
    first = world.send("checkins", good("checkins", 5, match_id=uid(8)))
    second = world.send("checkins", good("checkins", 5, match_id=uid(9)))
    third = world.delete("checkins", uid(5))
    world.finish()
    assert [world.kind(one) for one in (first, second, third)] == [
        "accepted",
        "accepted",
        "deleted",
    ]


def test_with_a_backlog_in_which_all_users_are_read_last_nobody_is_an_orphan() -> None:
    world = World(partitions=3)
    for number in range(20):
        world.send("checkins", good("checkins", number, match_id=uid(number % 5)))
        world.send("milestones", good("milestones", number + 1, user_id=uid(number % 7)))
    for number in range(5):
        world.send("matches", good("matches", number, participant_id=uid(5), buddy_id=uid(6)))
    rounds(world, times=3)
    for number in range(7):
        world.send("users", good("users", number))
    world.now += 100 * GRACE
    for _ in range(200):
        world.round(1, only=[0, 1])  # partition 2 lags behind
        world.now += 1000
    world.settle()
    found = [outcome for outcomes in world.outcomes().values() for outcome in outcomes]
    assert {(outcome.kind, outcome.codes) for outcome in found} == {("accepted", ())}
    assert len(found) == 52
    world.finish()
