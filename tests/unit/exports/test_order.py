"""The order of exports is that in which they were published, whatever the clocks said."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.exports.order import is_of, orders, overtaken


def name_of(number: int, second: int) -> str:
    return f"20251122T1030{second:02}Z_{number:08x}-e29b-41d4-a716-446655440000"


@given(st.lists(st.integers(0, 59), max_size=12, unique=True))
def test_any_order_of_stamps_is_put_right(seconds: list[int]) -> None:
    there: list[str] = []
    marks: list[str] = []
    for number, second in enumerate(seconds):
        name = name_of(number, second)
        marks += overtaken(orders(there, marks), name)
        there.append(name)
    assert list(orders(sorted(there), marks)) == there[::-1]
    gone = there[: len(there) // 2]
    kept = [name for name in there if name not in gone]
    left = [mark for mark in marks if is_of(mark, kept)]
    assert list(orders(kept, left)) == kept[::-1], "whatever is removed"


@given(st.lists(st.integers(0, 59), max_size=12))
def test_clocks_that_only_go_on_leave_no_marks(seconds: list[int]) -> None:
    there: list[str] = []
    for number, second in enumerate(sorted(seconds)):
        assert overtaken(orders(there, []), name_of(number, second)) == []
        there.append(name_of(number, second))
    assert list(orders(there, [])) == sorted(there, reverse=True)


def test_what_is_no_mark_is_passed_over() -> None:
    one, two = name_of(1, 1), name_of(2, 2)
    garbage = ["", "x", f"0_{two}", f"~_{two}", two, f"20251122T103000Z_{name_of(3, 3)}"]
    assert list(orders([one, two], garbage)) == [two, one]
    assert list(orders([one, two], [*garbage, f"20251122T103000Z_{two}"])) == [one, two]


def test_another_attempt_at_the_same_export_is_no_earlier_one() -> None:
    assert overtaken(orders([name_of(1, 5)], []), name_of(1, 4)) == []
