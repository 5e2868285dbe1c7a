"""What a seed decides about a run before it begins."""

from __future__ import annotations

from typing import Final

import msgspec

from tests.simulation.dice import Dice
from worker.core.outbox import Rules
from worker.topics import Names

PATIENT: Final = 10_000_000
"""A grace that no run outlasts: what comes at all comes in time."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Probabilities are for each time that something could happen."""

    seed: int
    dice: Dice
    rules: Rules
    workers: int
    records: int
    warm: bool
    """Whether all tasks run before anything is sent."""
    pace: float
    """How often upstream sends something."""
    encore: int
    """Steps after all is sent, before everything is healed."""
    fineness: float
    """How often a step ends where it might."""
    faults: float
    lag: float
    """How often a worker leaves an accepted partition unread that has something to read."""
    losses: float
    """How often a worker does not hear that its commit took place."""
    ordered: bool
    """Whether outcomes may depend on who comes first: contested addresses, deletions."""
    keyless: float
    """How many records have no key, and lie anywhere."""
    foreign: float
    """How many have a key, and yet lie anywhere."""
    addresses: int
    """How many there are for the users to contend for."""
    late: float
    """How many references are to what has not been sent."""
    never: float
    """How many of these never come."""
    deletions: float
    bad: float
    most_parked: int
    room: int
    """How many bytes of parked records a task has room for."""

    @property
    def is_roomy(self) -> bool:
        """Whether no input is ever paused."""
        return self.most_parked >= self.records and self.room >= 10_000_000

    clocks: bool
    """Whether somebody sets the wall clocks of workers."""
    recreated: int
    """How often, at most, the topic of an input is created anew."""


def settings(seed: int) -> Settings:
    """The run of a seed."""
    dice = Dice(seed)
    ordered = dice.random() < 0.8
    scattered = dice.random() < 0.3
    tasks = dice.choice((1, 2, 2, 3, 3))
    decision_bytes = dice.choice((1, 2_000, 1_000_000))
    return Settings(
        seed=seed,
        dice=dice,
        rules=Rules(
            names=Names("b"),
            tasks=tasks,
            decision_bytes=decision_bytes,
            grace=dice.choice((0, 300, 1_500)) if ordered else PATIENT,
            hold=dice.choice((0, 100, 1_000)),
            most_held=dice.choice((0, 2, 1_000)),
        ),
        workers=dice.choice((1, 2, 2, 3)),
        records=12 + dice.below(30),
        warm=dice.random() < 0.7,
        pace=dice.choice((0.015, 0.03, 0.06)),
        encore=dice.choice((0, 150, 300)),
        fineness=dice.choice((0.05, 0.15, 0.4)),
        faults=dice.choice((0.0, 0.005, 0.015, 0.04)),
        lag=dice.choice((0.0, 0.0, 0.7, 0.9)),
        losses=dice.choice((0.0, 0.0, 0.05)),
        ordered=ordered,
        keyless=dice.choice((0.3, 0.8)) if scattered else 0.0,
        foreign=dice.choice((0.0, 0.5)) if scattered else 0.0,
        addresses=dice.choice((1, 2, 3, 5)),
        late=dice.choice((0.0, 0.2, 0.5)),
        never=dice.choice((0.0, 0.2, 0.6)),
        deletions=dice.choice((0.0, 1.0, 3.0)) if ordered else 0.0,
        bad=dice.choice((0.0, 1.0, 3.0)),
        most_parked=dice.choice((1, 3, 1_000, 1_000)),
        room=dice.choice((1, 20_000, 10_000_000, 10_000_000)),
        clocks=ordered and dice.random() < 0.4,
        recreated=dice.choice((1, 1, 2, 3)) if ordered and dice.random() < 0.2 else 0,
    )
