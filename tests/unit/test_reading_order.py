"""In which order the inputs are read: what others refer to first, but nobody waits for ever."""

from __future__ import annotations

from worker.brokers.contract import Message
from worker.engine.order import ReadingOrder
from worker.topics import Names

NAMES = Names()
AFTER_USERS = {
    "matches", "events", "event_attendance", "skill_sessions", "checkins", "feedback", "milestones",
}  # fmt: skip
AFTER_MATCHES = AFTER_USERS - {"matches"}


class Clock:
    """Milliseconds that stand still until they are moved."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


def read(entity: str, clock: Clock, *, age: int) -> list[Message]:
    """A message of that entity that has lain in the log for `age` milliseconds."""
    return [Message(NAMES.inputs(entity), 0, 0, clock.now - age, b"k", b"v")]


def test_with_nothing_behind_all_are_read() -> None:
    assert ReadingOrder(NAMES, Clock()).later((), users_waiting=False) == frozenset()


def test_what_lay_there_at_the_take_over_is_waited_for_as_long_as_it_comes() -> None:
    clock = Clock()
    order = ReadingOrder(NAMES, clock)
    for _ in range(10):
        order.note(read("users", clock, age=0))
        assert order.later({"users", "matches"}, users_waiting=True) == AFTER_USERS
        clock.now += 1_500
    order.note([])
    assert order.later({"users", "matches"}, users_waiting=True) == AFTER_USERS


def test_a_backlog_that_gives_nothing_holds_nobody_up() -> None:
    clock = Clock()
    order = ReadingOrder(NAMES, clock)
    assert order.later({"users"}, users_waiting=False) == AFTER_USERS
    clock.now += 2_001
    assert order.later({"users"}, users_waiting=False) == frozenset()


def test_after_a_backlog_users_are_given_a_moment_for_their_addresses() -> None:
    clock = Clock()
    order = ReadingOrder(NAMES, clock)
    order.later({"users", "matches"}, users_waiting=True)
    clock.now += 2_000
    assert order.later({"matches"}, users_waiting=True) == AFTER_USERS
    clock.now += 1
    assert order.later({"matches"}, users_waiting=True) == AFTER_MATCHES
    clock.now += 1_999
    assert order.later({"matches"}, users_waiting=True) == AFTER_MATCHES
    assert order.later((), users_waiting=False) == frozenset()


def test_users_that_wait_hold_up_nobody_who_has_not_waited_for_a_backlog() -> None:
    order = ReadingOrder(NAMES, Clock())
    assert order.later((), users_waiting=True) == frozenset()


def test_a_backlog_that_has_grown_since_is_told_by_its_age() -> None:
    clock = Clock()
    order = ReadingOrder(NAMES, clock)
    order.note(read("matches", clock, age=10_001))
    assert order.later((), users_waiting=False) == AFTER_MATCHES
    order.note(read("users", clock, age=10_001))
    assert order.later((), users_waiting=False) == AFTER_USERS
    order.note(read("users", clock, age=10_000))
    assert order.later((), users_waiting=False) == frozenset()


def test_a_stream_of_old_users_alone_does_not_hold_the_others_up_for_ever() -> None:
    clock = Clock()
    order = ReadingOrder(NAMES, clock)
    order.later((), users_waiting=False)
    order.note(read("users", clock, age=20_000))
    clock.now += 2_000
    assert order.later((), users_waiting=False) == AFTER_USERS
    clock.now += 1
    assert order.later((), users_waiting=False) == frozenset()
    assert order.later((), users_waiting=False) == AFTER_USERS
