"""When everything that had entered is judged, as far as the tasks have said so."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.rows_kit import NAMES
from worker.sink.awaited import Awaited, SavedPosition, read_saved_position
from worker.stream import Message, OffsetRange, Partition


def place(entity: str, number: int = 0) -> Partition:
    return Partition(NAMES.input(entity), number)


def awaited(**spans: tuple[int, int]) -> Awaited:
    held = {place(name): OffsetRange(0, 0) for name in ENTITIES}
    identities = {NAMES.input(name): f"{name}-2" for name in ENTITIES}
    return Awaited(
        held | {place(name): OffsetRange(*span) for name, span in spans.items()}, NAMES, identities
    )


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
    waiting.note(0, SavedPosition({"matches": 9}, {"matches": 4}))
    assert waiting.pending() == {place("matches"): 5}
    assert waiting.steps() == (13, 18)
    waiting.note(0, SavedPosition({"matches": 12}, {"matches": 12}))
    assert waiting.pending() == {}
    assert waiting.judged()[place("matches")] == 12
    assert waiting.steps() == (18, 18)


def test_a_parked_record_is_waited_for_though_its_input_has_expired() -> None:
    waiting = awaited(matches=(9, 9))
    waiting.note(0, SavedPosition({"matches": 9}, {"matches": 4}))
    assert waiting.pending() == {place("matches"): 5}


def test_what_expired_unread_is_not_waited_for() -> None:
    waiting = awaited(matches=(9, 9))
    waiting.note(0, SavedPosition({"matches": 4}, {"matches": 4}))
    assert waiting.pending() == {}
    assert waiting.judged()[place("matches")] == 9


def test_other_tasks_and_what_comes_later_are_no_progress() -> None:
    waiting = awaited(users=(0, 5))
    waiting.note(1, SavedPosition({"users": 9}, {"users": 9}))
    assert waiting.pending() == {place("users"): 5}
    waiting.note(0, SavedPosition({"matches": 9}, {"matches": 9}))
    assert waiting.steps() == (0, 10)


def test_offsets_in_an_input_that_was_created_anew_since_do_not_count() -> None:
    waiting = awaited(users=(0, 9), matches=(0, 5))
    old = {"users": "users-1", "matches": "matches-2"}
    waiting.note(0, SavedPosition({"users": 400, "matches": 5}, {"users": 400, "matches": 5}, old))
    assert waiting.pending() == {place("users"): 9}
    now = {"users": "users-2", "matches": "matches-2"}
    waiting.note(0, SavedPosition({"users": 9, "matches": 5}, {"users": 9, "matches": 5}, now))
    assert waiting.pending() == {}


def test_progress_of_an_earlier_version_names_no_topics_and_counts() -> None:
    waiting = awaited(users=(0, 9))
    waiting.note(0, SavedPosition({"users": 9}, {"users": 9}))
    assert waiting.pending() == {}


def test_what_is_parked_of_the_input_before_is_waited_for_in_an_empty_one() -> None:
    waiting = awaited(users=(0, 0))
    waiting.note(0, SavedPosition({"users": 0}, {"users": -1}, {"users": "users-2"}))
    assert waiting.pending() == {place("users"): 1}
    assert waiting.judged()[place("users")] == 0, "no offset is below 0 in a manifest"
    waiting.note(0, SavedPosition({"users": 0}, {"users": 0}, {"users": "users-2"}))
    assert waiting.pending() == {}


def test_a_task_that_has_read_what_is_not_there_is_none() -> None:
    waiting = awaited(users=(0, 9))
    ends = {place("users"): 9}
    assert not waiting.is_beyond(0, SavedPosition({"users": 9}, {"users": 9}), ends)
    assert waiting.is_beyond(0, SavedPosition({"users": 10}, {"users": 1}), ends)
    assert not waiting.is_beyond(1, SavedPosition({"users": 10}, {"users": 1}), ends)
    other = SavedPosition({"users": 10}, {"users": 10}, {"users": "users-1"})
    assert not waiting.is_beyond(0, other, ends), "of a topic that was there before"


# --- reading it -----------------------------------------------------------------------------------


def progress(value: bytes | None, key: bytes | None = b"1", task: int = 1) -> Message:
    return Message(NAMES.progress, task, 0, 0, key, value)


GOOD = b'{"next":{"users":3},"judged":{"users":-1}}'


def test_progress_is_read_and_fields_of_later_versions_are_passed_over() -> None:
    assert read_saved_position(progress(GOOD)) == SavedPosition({"users": 3}, {"users": -1})
    more = GOOD[:-1] + b',"topics":{"users":"x"},"held":{"users":{"1":[2]}},"since":[1]}'
    assert read_saved_position(progress(more)) == SavedPosition(
        {"users": 3}, {"users": -1}, {"users": "x"}
    )


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (GOOD, None),
        (GOOD, b""),
        (GOOD, b"0"),
        (GOOD, b"01"),
        (GOOD, b"\xff"),
        (None, b"1"),
        (b"", b"1"),
        (b"\xff\x00", b"1"),
        (b"[]", b"1"),
        (b"{}", b"1"),
        (b'{"next":{}}', b"1"),
        (b'{"next":{"users":"3"},"judged":{}}', b"1"),
        (b'{"next":{"users":3.5},"judged":{}}', b"1"),
        (b'{"next":{"users":-1},"judged":{}}', b"1"),
        (b'{"next":{},"judged":{"users":-2}}', b"1"),
        (b'{"next":{"users":1e300},"judged":{}}', b"1"),
        (b'{"next":{"users":9223372036854775808},"judged":{}}', b"1"),
        (b'{"next":{"users":' + b"9" * 5000 + b'},"judged":{}}', b"1"),
        (b'{"next":{},"judged":{},"topics":{"users":7}}', b"1"),
        (b'{"next":' + b'{"a":' * 100_000, b"1"),
        (b'{"x":' + b"[" * 100_000, b"1"),
    ],
)
def test_garbage_is_no_progress(value: bytes | None, key: bytes | None) -> None:
    assert read_saved_position(progress(value, key)) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["next", "judged", "topics", "users"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON.map(msgspec.json.encode) | st.binary(max_size=40))
def test_no_bytes_make_reading_fail(value: bytes) -> None:
    saved = read_saved_position(progress(value))
    waiting = awaited(users=(0, 5))
    if saved is not None:
        waiting.note(0, saved)
    done, total = waiting.steps()
    assert 0 <= done <= total


@given(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), max_size=6),
)
def test_all_steps_are_done_when_nothing_is_pending(
    span: list[int], saved: list[list[int]]
) -> None:
    waiting = awaited(users=(span[0], span[1]))
    for judged, read in sorted(saved):
        waiting.note(0, SavedPosition({"users": max(read, judged)}, {"users": judged}))
        done, total = waiting.steps()
        assert 0 <= done <= total
        if not waiting.pending():
            assert done == total
