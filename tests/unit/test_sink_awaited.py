"""When everything that had entered is judged, as far as the tasks have said so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.test_sink_rows import NAMES
from worker.brokers.contract import Partition, Span
from worker.core.barrier import Progress
from worker.sink.awaited import Awaited


def place(entity: str, number: int = 0) -> Partition:
    return Partition(NAMES.inputs(entity), number)


def awaited(**spans: tuple[int, int]) -> Awaited:
    held = {place(name): Span(0, 0) for name in ENTITIES}
    return Awaited(held | {place(name): Span(*span) for name, span in spans.items()}, NAMES)


def test_nothing_is_waited_for_where_nothing_is() -> None:
    waiting = awaited(users=(7, 7))
    assert waiting.pending() == {}
    assert waiting.judged()[place("users")] == 7


def test_a_task_that_saved_nothing_is_waited_for_where_there_is_something() -> None:
    waiting = awaited(users=(7, 9))
    assert waiting.pending() == {place("users"): 2}
    assert waiting.judged()[place("users")] == 7


def test_a_parked_record_is_read_but_not_judged() -> None:
    waiting = awaited(matches=(0, 9))
    waiting.note(0, Progress({"matches": 9}, {"matches": 4}))
    assert waiting.pending() == {place("matches"): 5}
    assert waiting.steps() == (13, 18)
    waiting.note(0, Progress({"matches": 12}, {"matches": 12}))
    assert waiting.pending() == {}
    assert waiting.judged()[place("matches")] == 12
    assert waiting.steps() == (18, 18)


def test_a_parked_record_is_waited_for_though_its_input_has_expired() -> None:
    waiting = awaited(matches=(9, 9))
    waiting.note(0, Progress({"matches": 9}, {"matches": 4}))
    assert waiting.pending() == {place("matches"): 5}


def test_what_expired_unread_is_not_waited_for() -> None:
    waiting = awaited(matches=(9, 9))
    waiting.note(0, Progress({"matches": 4}, {"matches": 4}))
    assert waiting.pending() == {}
    assert waiting.judged()[place("matches")] == 9


def test_other_tasks_and_what_comes_later_are_no_progress() -> None:
    waiting = awaited(users=(0, 5))
    waiting.note(1, Progress({"users": 9}, {"users": 9}))
    assert waiting.pending() == {place("users"): 5}
    waiting.note(0, Progress({"matches": 9}, {"matches": 9}))
    assert waiting.steps() == (0, 10)


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), max_size=6),
)
def test_all_steps_are_done_when_nothing_is_pending(
    span: list[int], saved: list[list[int]]
) -> None:
    waiting = awaited(users=(span[0], span[1]))
    for judged, read in sorted(saved):
        waiting.note(0, Progress({"users": max(read, judged)}, {"users": judged}))
        done, total = waiting.steps()
        assert 0 <= done <= total
        if not waiting.pending():
            assert done == total
