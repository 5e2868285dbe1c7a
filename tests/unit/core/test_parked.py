"""A parked record: the state in which it begins, and the steps that it may take."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.core_kit import NOW, good, to_json, uid
from worker.core.decode import Decoded, Deletion, decoders, latest_moment
from worker.core.moments import Moment
from worker.core.parked import TRANSITIONS, Parked, State
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
