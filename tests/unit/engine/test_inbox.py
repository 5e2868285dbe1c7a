"""What a task has read and not judged: taken up to a moment, in order, and weighed."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.pressure import weight
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import TASK_INPUTS, Names
from worker.engine.order import FOREVER
from worker.engine.task_handle import TaskHandle
from worker.stream import Message

NAMES = Names()
NOW = 1_764_547_200_000

names = st.sampled_from(["claims", "users", "matches", "events"])
moments = st.integers(0, 9)


def inbox(messages: list[Message]) -> TaskHandle:
    owned = TaskHandle(Task(0, TaskSettings(names=NAMES)), dict.fromkeys(TASK_INPUTS, 0))
    for message in messages:
        owned.put([message], NOW)
    return owned


def read(arrivals: list[tuple[str, int]]) -> list[Message]:
    offsets = count()
    return [
        Message(NAMES.input(name), 0, next(offsets), moment, b"k", b"v" * moment)
        for name, moment in arrivals
    ]


def offsets(messages: list[Message], name: str) -> list[int]:
    return [message.offset for message in messages if message.topic == NAMES.input(name)]


@given(st.lists(st.tuples(names, moments)), st.dictionaries(names, moments))
def test_what_arrived_up_to_the_limits_is_taken_and_the_rest_stays(
    arrivals: list[tuple[str, int]], limits: dict[str, int]
) -> None:
    messages = read(sorted(arrivals, key=lambda arrival: arrival[1]))
    owned = inbox(messages)
    taken = owned.take(limits)
    late = [m for m in messages if m.timestamp > limits.get(owned.task.inputs[m.topic], 9)]
    assert owned.waiting() == len(late) == len(messages) - len(taken)
    for name in TASK_INPUTS:
        there, left = offsets(messages, name), offsets(late, name)
        assert offsets(taken, name) == [offset for offset in there if offset not in left]
        assert owned.inbox_bytes[name] == sum(
            weight(m) for m in late if m.topic == NAMES.input(name)
        )
    assert sorted(m.offset for m in owned.take({})) == sorted(m.offset for m in late)
    assert owned.waiting() == 0
    assert not any(owned.inbox_bytes.values())


@given(st.lists(st.tuples(names, moments)), st.lists(st.dictionaries(names, moments), max_size=5))
def test_the_order_of_an_input_is_kept_whatever_a_producers_clock_says(
    arrivals: list[tuple[str, int]], steps: list[dict[str, int]]
) -> None:
    messages = read(arrivals)
    owned = inbox(messages)
    taken = [message for limits in [*steps, {}] for message in owned.take(limits)]
    for name in TASK_INPUTS:
        assert offsets(taken, name) == offsets(messages, name)


def test_up_to_where_users_and_matches_are_judged() -> None:
    owned = inbox(read([("users", 3), ("users", 5), ("users", 8), ("matches", 2), ("events", 9)]))
    assert owned.taken_until() == {"users": 2, "matches": 1}
    owned.take({"users": 5})
    assert owned.taken_until() == {"users": 7, "matches": 2}, (
        "more may come of a moment that is not over"
    )
    owned.take({})
    assert owned.taken_until() == {"users": 8, "matches": 2}


def sent(*times: int, appended: bool = False) -> list[Message]:
    """Users with these times of their producer."""
    topic = NAMES.input("users")
    return [
        Message(topic, 0, offset, time, b"k", b"v", (), appended)
        for offset, time in enumerate(times)
    ]


@pytest.mark.parametrize("time", [NOW + 1, 10**14, 1 << 62, (1 << 63) - 1])
def test_no_record_waits_for_a_time_in_the_future(time: int) -> None:
    owned = inbox(sent(time, NOW - 5))
    assert owned.taken_until() == {"users": NOW - 1}
    assert (owned.times["users"], owned.take({"users": NOW - 1})) == ([NOW, NOW - 5], [])
    assert [message.timestamp for message in owned.take({"users": NOW})] == [time, NOW - 5]
    owned = inbox(sent(NOW - 5, time))
    assert [message.offset for message in owned.take({"users": NOW - 5})] == [0]
    assert [message.offset for message in owned.take({"users": FOREVER})] == [1]
    assert owned.taken_until() == {"users": NOW}


@pytest.mark.parametrize("time", [-1, -(1 << 63)])
def test_a_time_before_1970_is_the_start_of_1970(time: int) -> None:
    """Kafka has -1 for a record without a time."""
    owned = inbox(sent(time))
    assert owned.read_until == {"users": 0}
    assert len(owned.take({"users": 0})) == 1


def test_an_append_time_is_taken_as_it_is() -> None:
    """The clocks of broker and worker may differ, and the order is by the broker's."""
    later = NOW + 3_600_000
    owned = inbox(sent(later, later + 2, appended=True))
    assert owned.times["users"] == [later, later + 2]
    assert len(owned.take({"users": later})) == 1
    assert owned.times["users"] == [later + 2]


@given(st.lists(st.tuples(names, moments)), st.lists(st.dictionaries(names, moments), max_size=5))
def test_each_message_has_its_time(
    arrivals: list[tuple[str, int]], steps: list[dict[str, int]]
) -> None:
    owned = inbox(read(arrivals))
    for limits in steps:
        owned.take(limits)
        for name in TASK_INPUTS:
            assert owned.times[name] == [message.timestamp for message in owned.inbox[name]]
