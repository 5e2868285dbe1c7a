"""In which order the inputs are read: what others refer to first, but nobody waits for ever."""

from __future__ import annotations

from tests.clock_kit import SettableClock
from worker.brokers.contract import Message
from worker.engine.order import ReadingOrder
from worker.topics import Names

NAMES = Names()
AFTER_USERS = {
    "matches", "events", "event_attendance", "skill_sessions", "checkins", "feedback", "milestones",
}  # fmt: skip
AFTER_MATCHES = AFTER_USERS - {"matches"}


def read(entity: str, clock: SettableClock, *, age: int) -> list[Message]:
    """A message of that entity that has lain in the log for `age` milliseconds."""
    return [Message(NAMES.inputs(entity), 0, 0, clock.wall() - age, b"k", b"v")]


def test_with_nothing_behind_all_are_read() -> None:
    assert ReadingOrder(NAMES, SettableClock()).later((), users_waiting=False) == frozenset()


def test_what_lay_there_at_the_take_over_is_waited_for_as_long_as_it_comes() -> None:
    clock = SettableClock()
    order = ReadingOrder(NAMES, clock)
    for _ in range(10):
        order.note(read("users", clock, age=0))
        assert order.later({"users", "matches"}, users_waiting=True) == AFTER_USERS
        clock.advance(1_500)
    order.note([])
    assert order.later({"users", "matches"}, users_waiting=True) == AFTER_USERS


def test_a_backlog_that_gives_nothing_holds_nobody_up() -> None:
    clock = SettableClock()
    order = ReadingOrder(NAMES, clock)
    assert order.later({"users"}, users_waiting=False) == AFTER_USERS
    clock.advance(2_001)
    assert order.later({"users"}, users_waiting=False) == frozenset()


def test_after_a_backlog_users_are_given_a_moment_for_their_addresses() -> None:
    clock = SettableClock()
    order = ReadingOrder(NAMES, clock)
    order.later({"users", "matches"}, users_waiting=True)
    clock.advance(2_000)
    assert order.later({"matches"}, users_waiting=True) == AFTER_USERS
    clock.advance(1)
    assert order.later({"matches"}, users_waiting=True) == AFTER_MATCHES
    clock.advance(1_999)
    assert order.later({"matches"}, users_waiting=True) == AFTER_MATCHES
    assert order.later((), users_waiting=False) == frozenset()


def test_users_that_wait_hold_up_nobody_who_has_not_waited_for_a_backlog() -> None:
    order = ReadingOrder(NAMES, SettableClock())
    assert order.later((), users_waiting=True) == frozenset()


def test_a_backlog_that_has_grown_since_is_told_by_its_age() -> None:
    clock = SettableClock()
    order = ReadingOrder(NAMES, clock)
    order.note(read("matches", clock, age=10_001))
    assert order.later((), users_waiting=False) == AFTER_MATCHES
    order.note(read("users", clock, age=10_001))
    assert order.later((), users_waiting=False) == AFTER_USERS
    order.note(read("users", clock, age=10_000))
    assert order.later((), users_waiting=False) == frozenset()


def test_a_stream_of_old_users_alone_does_not_hold_the_others_up_for_ever() -> None:
    clock = SettableClock()
    order = ReadingOrder(NAMES, clock)
    order.later((), users_waiting=False)
    order.note(read("users", clock, age=20_000))
    clock.advance(2_000)
    assert order.later((), users_waiting=False) == AFTER_USERS
    clock.advance(1)
    assert order.later((), users_waiting=False) == frozenset()
    assert order.later((), users_waiting=False) == AFTER_USERS
