"""Every record that a refused commit names is rejected at the next try, not one each time."""

from __future__ import annotations

import pytest

from worker.core.outbox import SOURCE_HEADER
from worker.core.topics import Names
from worker.engine.refusals import MOST, Refusals
from worker.errors import MessageRefused
from worker.stream import ProducerRecord

NAMES = Names("b")


def row(task: int, offset: int) -> ProducerRecord:
    source = ((SOURCE_HEADER, f"b.in.users/{task}/{offset}".encode()),)
    return ProducerRecord(NAMES.accepted("users"), b"k", b"v", source, partition=task)


def test_all_records_that_are_refused_are_noted() -> None:
    refusals = Refusals(NAMES)
    outputs = [row(0, 7), row(0, 8), row(2, 7), row(0, 7)]
    refusal = refusals.add(outputs, MessageRefused.of(dict.fromkeys([0, 2, 3], "too large")))
    assert refusal == (0, None)
    assert refusals.of(0) == {("users", 7): 1}
    assert refusals.of(2) == {("users", 7): 1}


@pytest.mark.parametrize("tries", [MOST, MOST + 1])
def test_a_task_that_cannot_go_on_is_named_wherever_it_stands(tries: int) -> None:
    refusals = Refusals(NAMES)
    for _ in range(tries - 1):
        refusals.add([row(2, 7)], MessageRefused.of({0: "too large"}))
    refused = MessageRefused.of({0: "too large", 1: "larger"})
    refusal = refusals.add([row(0, 7), row(2, 7)], refused)
    assert refusal == ((2, "larger") if tries > MOST else (0, None))


def test_a_state_that_is_refused_is_named_beside_records() -> None:
    refusals = Refusals(NAMES)
    state = ProducerRecord(NAMES.progress, b"1", b"v", partition=1)
    refusal = refusals.add([row(0, 7), state], MessageRefused.of({0: "too large", 1: "it too"}))
    assert refusal.task == 1
    assert "its own state" in str(refusal.why)
    assert refusals.of(0) == {("users", 7): 1}
