"""A parked record: the state in which it begins, and the steps that it may take."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from tests.unit.core_kit import NOW, good, to_json, uid
from worker.core.decode import Decoded, Deletion, decoders, latest_moment
from worker.core.frontier import Frontier
from worker.core.moments import Moment
from worker.core.parked import TRANSITIONS, Parked, State
from worker.core.parking import Parking
from worker.stream import Message

STEPS = [(one, other) for one, after in TRANSITIONS.items() for other in after]
KEY = uid(1).encode()


def parked(entity: str, *, deletion: bool = False) -> Parked:
    message = Message(entity, 0, 7, NOW, None, to_json(good(entity)))
    outcome = decoders()[entity].decode(message.value, None, latest_moment(NOW, 60))
    assert isinstance(outcome, Decoded)
    return Parked(entity, message, Deletion(KEY) if deletion else outcome, NOW, Moment(NOW, NOW), 7)


@pytest.mark.parametrize(
    ("entity", "state"),
    [
        ("users", State.UNREQUESTED),
        ("matches", State.GRACE),
        ("checkins", State.GRACE),
        ("milestones", State.GRACE),
    ],
)
def test_the_first_state_is_that_of_its_references_and_address(entity: str, state: State) -> None:
    assert parked(entity).state is state
    assert parked(entity, deletion=True).state is State.TURN


@pytest.mark.parametrize(("one", "other"), [*itertools.product(State, State)])
def test_a_record_takes_the_steps_of_the_table_and_no_other(one: State, other: State) -> None:
    record = parked("milestones")
    record.state = one
    if (one, other) in STEPS:
        record.move(other)
        assert record.state is other
    else:
        with pytest.raises(AssertionError, match=f"{one} to {other}"):
            record.move(other)
        assert record.state is one


def test_every_state_is_in_the_table() -> None:
    assert TRANSITIONS.keys() == {*State}


def test_a_record_without_references_waits_for_its_turn_alone() -> None:
    record = parked("milestones")
    assert isinstance(record.decoded, Decoded)
    alone = msgspec.structs.replace(record.decoded, users=(), matches=())
    copy = Parked("milestones", record.message, alone, NOW, Moment(NOW, NOW), 7)
    assert (copy.state, copy.refers_to_matches) == (State.TURN, False)


def test_what_is_past_its_grace_is_counted_until_it_is_released() -> None:
    parking = Parking()
    record = parked("checkins")
    parking.add(record)
    users, matches = (Frontier({}, covers_matches=both) for both in (False, True))
    assert not parking.end_grace(NOW - 1)
    assert parking.past_grace == 0
    assert parking.end_grace(NOW)
    assert parking.past_grace == 1
    parking.await_frontiers(users, matches)
    assert (parking.past_grace, list(parking.frontiers())) == (1, [matches])
    assert parking.is_parked(record)
    parking.remove(record)
    assert (parking.past_grace, list(parking.frontiers())) == (0, [])
    assert not parking.is_parked(record)


def test_records_whose_frontier_has_been_passed_are_taken_once() -> None:
    parking = Parking()
    first, second = parked("milestones"), parked("checkins")
    for record in (first, second):
        parking.add(record)
    users, matches = (Frontier({}, covers_matches=both) for both in (False, True))
    parking.end_grace(NOW)
    parking.await_frontiers(users, matches)
    users.passed = True
    assert parking.take_passed() == [first]
    assert parking.take_passed() == []
    parking.remove(first)
    assert list(parking.frontiers()) == [matches]
