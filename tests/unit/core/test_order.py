"""Records of one key are judged in their order, deletions among them."""

from __future__ import annotations

import pytest

from tests.unit.core_kit import GRACE, World, good, uid


def kinds(world: World, sent: list[str]) -> list[str]:
    return [world.kind(one) for one in sent]


def published(world: World, sent: list[str]) -> list[str]:
    """Those of the records that have an outcome, in the order of their outcomes."""
    order = {}
    for place, message in enumerate(world.committed):
        source = dict(message.headers).get("buddy-source", b"").decode()
        if source in sent:
            order[source] = place
    return sorted(order, key=lambda source: order[source])


def test_while_one_is_parked_later_ones_of_its_key_queue_behind_it() -> None:
    world = World()
    world.send("users", good("users", 1))
    first = world.send("milestones", good("milestones", 5, user_id=uid(1)))
    world.settle()
    waiting = world.send("checkins", good("checkins", 5, match_id=uid(9)))
    ready = world.send("checkins", good("checkins", 5, match_id=uid(1)))
    world.send("matches", good("matches", 1, buddy_id=uid(1)))
    world.settle()
    assert kinds(world, [first, waiting, ready]) == ["accepted", "open", "open"]
    world.send("matches", good("matches", 9, buddy_id=uid(1)))
    world.settle()
    assert kinds(world, [waiting, ready]) == ["accepted", "accepted"]
    assert published(world, [waiting, ready]) == [waiting, ready]
    row = world.row("checkins", uid(5))
    assert row is not None
    assert row["match_id"] == uid(1)


@pytest.mark.parametrize("key", [uid(5), uid(5).upper()])
def test_deletions_queue_behind_a_parked_record(key: str) -> None:
    world = World()
    parked = world.send("checkins", good("checkins", 5, match_id=uid(9)))
    deletion = world.delete("checkins", key)
    world.settle()
    assert kinds(world, [parked, deletion]) == ["open", "open"]
    world.now += GRACE
    world.finish()
    assert kinds(world, [parked, deletion]) == ["accepted", "deleted"]
    assert published(world, [parked, deletion]) == [parked, deletion]
    assert world.row("checkins", uid(5)) is None


def test_a_deletion_behind_a_rejected_orphan_is_published_too() -> None:
    world = World()
    parked = world.send("milestones", good("milestones", 5, user_id=uid(9)))
    deletion = world.delete("milestones", f"5:{uid(9)}")
    world.finish()
    assert kinds(world, [parked, deletion]) == ["rejected", "deleted"]


def test_a_record_with_faults_of_its_own_does_not_wait_behind_a_parked_one() -> None:
    world = World()
    parked = world.send("checkins", good("checkins", 5, match_id=uid(9)))
    faulty = world.send("checkins", good("checkins", 5, mood="wild"))
    malformed = world.send("checkins", b"{", uid(5))
    decision = world.round()[0]
    assert kinds(world, [parked, faulty, malformed]) == ["open", "rejected", "rejected"]
    assert decision.tally.parked == {"checkins": 1}


def test_a_faulty_record_does_not_free_those_behind_a_parked_one() -> None:
    world = World()
    parked = world.send("checkins", good("checkins", 5, match_id=uid(9)))
    world.send("checkins", good("checkins", 5, mood="wild"))
    behind = world.delete("checkins", uid(5))
    world.settle()
    assert kinds(world, [parked, behind]) == ["open", "open"]


def test_other_keys_and_other_entities_do_not_wait() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("checkins", good("checkins", 5, match_id=uid(9)))
    other_key = world.delete("checkins", uid(6))
    other_entity = world.delete("feedback", uid(5))
    world.settle()
    assert kinds(world, [other_key, other_entity]) == ["deleted", "deleted"]


def test_each_in_a_queue_waits_for_its_own_references() -> None:
    world = World()
    one = world.send("milestones", good("milestones", 5, user_id=uid(1), points=1))
    two = world.send("milestones", good("milestones", 5, user_id=uid(1), points=2))
    three = world.delete("milestones", f"5:{uid(1)}")
    four = world.send("milestones", good("milestones", 5, user_id=uid(1), points=4))
    sent = [one, two, three, four]
    world.settle()
    assert kinds(world, sent) == ["open"] * 4
    world.send("users", good("users", 1))
    world.settle()
    assert kinds(world, sent) == ["accepted", "accepted", "deleted", "accepted"]
    assert published(world, sent) == sent


def test_the_next_in_a_queue_parks_again_for_what_it_misses_itself() -> None:
    world = World()
    world.send("users", good("users", 1))
    first = world.send("checkins", good("checkins", 5, match_id=uid(1)))
    second = world.send("checkins", good("checkins", 5, match_id=uid(2)))
    third = world.send("checkins", good("checkins", 5, match_id=uid(1)))
    world.send("matches", good("matches", 1, buddy_id=uid(1)))
    world.settle()
    assert kinds(world, [first, second, third]) == ["accepted", "open", "open"]
    world.send("matches", good("matches", 2, buddy_id=uid(1)))
    world.settle()
    assert published(world, [first, second, third]) == [first, second, third]


def test_a_parked_update_of_a_known_match_leaves_the_match_known() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("matches", good("matches", 1, buddy_id=uid(1)))
    world.settle()
    update = world.send("matches", good("matches", 1, buddy_id=uid(9)))
    child = world.send("checkins", good("checkins", 5))
    world.settle()
    assert kinds(world, [update, child]) == ["open", "accepted"]
    world.finish()
    assert world.kind(update) == "rejected"
    row = world.row("matches", uid(1))
    assert row is not None
    assert row["buddy_id"] == uid(1)


def test_deletions_of_unknown_keys_are_published() -> None:
    world = World()
    sent = world.delete("feedback", uid(77).upper())
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert outcome.kind == "deleted"
    assert outcome.message.key == uid(77).encode()
    assert [name for name, _ in outcome.message.headers] == ["buddy-source", "buddy-accepted-at"]


def test_a_deleted_user_is_unknown_and_what_referred_to_it_stays() -> None:
    world = World()
    world.send("users", good("users", 1))
    before = world.send("milestones", good("milestones", 5))
    world.settle()
    world.delete("users", uid(1))
    world.settle()
    after = world.send("milestones", good("milestones", 6))
    world.settle()
    assert kinds(world, [before, after]) == ["accepted", "open"]
    assert world.row("milestones", f"5:{uid(1)}") is not None


def test_within_one_batch_a_deletion_makes_the_user_unknown_to_what_follows() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.settle()
    world.delete("users", uid(1))
    sent = world.send("milestones", good("milestones", 5))
    world.round()
    assert world.kind(sent) == "open"
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_a_record_released_by_a_user_that_is_deleted_at_once_is_judged_by_what_is_known() -> None:
    world = World()
    sent = world.send("matches", good("matches", 1))
    world.round()
    world.send("users", good("users", 1))
    world.settle()
    world.delete("users", uid(1))
    world.settle()
    world.send("users", good("users", 2))
    world.settle()
    assert world.kind(sent) == "open"
    world.finish()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert (outcome.codes, outcome.fields) == (("orphaned_user_id",), ("participant_id",))


def test_what_waits_is_released_when_a_deleted_user_returns() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    world.settle()
    world.delete("users", uid(2))
    sent = world.send("matches", good("matches", 1))
    world.settle()
    assert world.kind(sent) == "open"
    world.send("users", good("users", 2))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_of_two_updates_in_one_batch_the_later_is_the_row() -> None:
    world = World()
    sent = [world.send("users", good("users", 1, first_name=name)) for name in ("Ann", "Bea")]
    world.round()
    assert published(world, sent) == sent
    row = world.row("users", uid(1))
    assert row is not None
    assert row["first_name"] == "Bea"


def test_a_message_key_in_another_case_is_the_same_key() -> None:
    world = World()
    parked = world.send("checkins", good("checkins", 5, match_id=uid(9)), uid(5).upper())
    behind = world.send("checkins", good("checkins", 5, checkin_id=uid(5).upper()))
    world.delete("checkins", uid(5))
    world.settle()
    assert len(world.tasks[0].parking) == 3
    world.finish()
    assert published(world, [parked, behind]) == [parked, behind]
    keys = {m.key for m in world.committed if m.topic == "buddy.accepted.checkins"}
    assert keys == {uid(5).encode()}
