"""A record whose judging fails is rejected; where the index fails, no verdict is given."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.core_kit import World, good, owned
from worker.core.recent import RecentRows
from worker.core.task_round import TaskRound
from worker.errors import StateLost

LOOK_UPS = ("user", "match", "unknown_users", "unknown_matches", "taken")


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any) -> Any:
        raise error

    for name in LOOK_UPS:
        monkeypatch.setattr(RecentRows, name, fail)


def test_an_error_of_its_own_rejects_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.settle()
    sent = world.send("milestones", good("milestones", 1))
    failing(monkeypatch, ZeroDivisionError())
    (decision,) = world.round().values()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert (outcome.kind, outcome.codes) == ("rejected", ("internal_error",))
    assert decision.tally.failures == [(sent, "ZeroDivisionError")]


@pytest.mark.parametrize("alone", [False, True], ids=["batch", "record by record"])
def test_an_error_of_the_index_rejects_nothing(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    world = World()
    world.settle()
    world.send("milestones", good("milestones", 1))
    failing(monkeypatch, StateLost("damaged"))
    if alone:
        monkeypatch.setattr(
            TaskRound, "_sort_out", lambda *args: [(n, None) for n in range(len(args[2]))]
        )
    with pytest.raises(StateLost):
        world.round()
    assert not any(".rejected." in message.topic for message in world.committed)


def test_a_user_with_a_warning_is_judged_alone_and_keeps_its_warning() -> None:
    world = World()
    world.settle()
    address = owned(0, 1)
    sent = world.send("users", good("users", 1, email=address, joined_at="2024-01-15T10:00:00"))
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert (outcome.kind, outcome.codes) == ("accepted", ("naive_timestamp",))
