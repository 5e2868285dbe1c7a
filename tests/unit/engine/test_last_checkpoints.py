"""Which checkpoint of a task a worker remembers."""

from __future__ import annotations

import pytest

from worker.engine.last_checkpoints import LastCheckpoints

ME = "me"


def known(last: LastCheckpoints, number: int = 0) -> tuple[bytes, str] | None:
    """The checkpoint that is remembered, and the owner whose last one it is."""
    found = last.of(number)
    return None if found is None else (found.value, found.owner)


def test_that_of_every_task_is_remembered() -> None:
    last = LastCheckpoints()
    last.wrote(0, 7, b"own", ME)
    last.read(1, 3, b"theirs")
    assert known(last, 0) == (b"own", ME)
    assert known(last, 1) == (b"theirs", "")
    assert known(last, 2) is None


def test_what_was_written_is_not_replaced_by_what_is_read_of_before() -> None:
    last = LastCheckpoints()
    last.wrote(0, 7, b"own", ME)
    last.read(0, 6, b"older")
    last.read(0, 7, b"own")
    assert known(last) == (b"own", ME)
    last.read(0, 8, b"theirs")
    assert known(last) == (b"theirs", "")


def test_what_is_written_is_the_last_whatever_its_offset() -> None:
    last = LastCheckpoints()
    last.wrote(0, 7, b"own", ME)
    last.wrote(0, 0, b"in a topic that was made anew", ME)
    assert known(last) == (b"in a topic that was made anew", ME)


def test_after_a_commit_that_may_be_in_the_log_the_one_before_is_not_surely_the_last() -> None:
    last = LastCheckpoints()
    last.may_be_followed(0)
    last.wrote(0, 7, b"own", ME)
    last.may_be_followed(0)
    assert known(last) == (b"own", "")
    last.wrote(0, 8, b"own", ME)
    assert known(last) == (b"own", ME)


def test_the_same_checkpoint_read_again_is_still_of_its_owner() -> None:
    last = LastCheckpoints()
    last.wrote(0, 0, b"own", ME)
    last.went_back()
    last.read(0, 0, b"own")
    assert known(last) == (b"own", ME)


@pytest.mark.parametrize("how", ["another topic", "cut short", "went back"])
def test_what_is_read_of_a_topic_that_went_back_is_later(how: str) -> None:
    last = LastCheckpoints()
    last.starts("a", {})
    last.read(0, 7, b"before")
    match how:
        case "another topic":
            last.starts("b", {0: 100})
        case "cut short":
            last.starts("a", {0: 7})
        case _:
            last.went_back()
    assert known(last) == (b"before", ""), "nothing else is known"
    last.read(0, 2, b"after")
    assert known(last) == (b"after", "")


def test_a_new_reader_of_the_same_topic_changes_nothing() -> None:
    last = LastCheckpoints()
    last.starts("a", {})
    last.read(0, 7, b"the last")
    last.starts("a", {0: 8})
    last.read(0, 2, b"older")
    assert known(last) == (b"the last", "")


def test_tasks_that_are_no_more_are_told_by_who_worked_on_them() -> None:
    last = LastCheckpoints()
    last.wrote(0, 7, b"kept", ME)
    last.wrote(1, 7, b"own", ME)
    last.may_be_followed(1)
    last.read(2, 7, b"theirs")
    assert last.take_beyond(1) == {1: b"own"}
    assert last.take_beyond(1) == {}
    assert known(last) == (b"kept", ME)


def test_memory_is_bounded() -> None:
    last = LastCheckpoints()
    large = bytes(2**20)
    for number in range(40):
        last.read(number, 1, large)
    assert sum(last.of(number) is not None for number in range(40)) == 32
    last.read(0, 2, b"small")
    last.read(39, 2, b"small")
    assert known(last, 39) == (b"small", "")
    last.read(1, 2, bytes(2**25))
    assert known(last, 1) is None, "an older one would be worse than none"
