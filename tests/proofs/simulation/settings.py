"""What a seed decides about a run before it begins."""

from __future__ import annotations

from typing import Final

import msgspec

from tests.proofs.simulation.dice import Dice
from worker.core.pressure import Limits
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names

PATIENT: Final = 300_000
"""A grace that no run outlasts: what comes at all comes in time."""
_AMPLE: Final = 1_000_000_000


class SmallLimits(Limits, frozen=True, kw_only=True):
    """Limits under which a decision is full long before a real one would be."""

    decision: int

    def batch(self, tasks: int, of: int = 1) -> int:
        """As a decision is limited, so is a batch, also that of all tasks of a worker."""
        return self.decision


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Probabilities are for each time that something could happen."""

    seed: int
    dice: Dice
    rules: TaskSettings
    limits: SmallLimits
    workers: int
    records: int
    warm: bool
    """Whether all tasks run before anything is sent."""
    pace: float
    """How often upstream sends something."""
    encore: int
    """Turns after all is sent, before everything is healed."""
    fineness: float
    """How often a request takes time, and leaves others time to come first."""
    slow: float
    """How many of these take long."""
    faults: float
    ambushes: float
    """How many take-overs are struck before they are done."""
    lag: float
    """How often a reader leaves an accepted partition unread that has something to read."""
    losses: float
    """How often a worker does not hear what became of its commit."""
    poll: int
    """How many times longer than it was told an idle reader waits."""
    limit: float
    """Seconds after which the broker gives up an open transaction."""
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
    refused: float
    """How many rows the broker never takes."""
    clocks: bool
    """Whether somebody sets the wall clocks of workers."""
    recreated: int
    """How often, at most, the topic of an input is created anew."""
    senders: bool
    """Whether senders open transactions in inputs of users and matches, and abort them."""
    resets: int
    """How often, at most, an operator has records judged again."""


def settings(seed: int) -> Settings:
    """The run of a seed."""
    dice = Dice(seed)
    ordered = dice.random() < 0.8
    scattered = dice.random() < 0.3
    tasks = dice.choice((1, 2, 2, 3, 3))
    faults = dice.choice((0.0, 0.01, 0.03, 0.06))
    return Settings(
        seed=seed,
        dice=dice,
        rules=TaskSettings(
            names=Names("b"),
            tasks=tasks,
            grace=dice.choice((0, 300, 1_500)) if ordered else PATIENT,
            persist_after=dice.choice((0, 100, 1_000)),
            most_in_memory=dice.choice((0, 2, 1_000)),
        ),
        limits=SmallLimits(
            # Where one waits for the whole of a patient grace others would wait behind it.
            records=dice.choice((1, 3, 1_000, 1_000)) if ordered else 1_000,
            bytes=dice.choice((1, 20_000 * tasks, _AMPLE, _AMPLE)) if ordered else _AMPLE,
            decision=dice.choice((1, 2_000, 1_000_000, 1_000_000)),
        ),
        workers=dice.choice((1, 2, 2, 3)),
        records=12 + dice.below(30),
        warm=dice.random() < 0.7,
        pace=dice.choice((0.03, 0.06, 0.12)),
        encore=dice.choice((0, 50, 150)),
        fineness=dice.choice((0.05, 0.15, 0.4)),
        slow=dice.choice((0.0, 0.05, 0.2)),
        faults=faults,
        ambushes=0.5 if seed % 4 == 3 else 0.0,
        lag=dice.choice((0.0, 0.0, 0.7, 0.9)),
        losses=dice.choice((0.0, 0.02, 0.1)),
        poll=dice.choice((1, 4, 10)),
        limit=dice.choice((2.0, 2.0, 15.0)),
        ordered=ordered,
        keyless=dice.choice((0.3, 0.8)) if scattered else 0.0,
        foreign=dice.choice((0.0, 0.5)) if scattered else 0.0,
        addresses=dice.choice((1, 2, 3, 5)),
        late=dice.choice((0.0, 0.2, 0.5)),
        never=dice.choice((0.0, 0.2, 0.6)),
        deletions=dice.choice((0.0, 1.0, 3.0)) if ordered else 0.0,
        bad=dice.choice((0.0, 1.0, 3.0)),
        refused=dice.choice((0.05, 0.2)) if ordered and dice.random() < 0.15 else 0.0,
        clocks=ordered and dice.random() < 0.4,
        recreated=dice.choice((1, 1, 2, 3)) if ordered and dice.random() < 0.2 else 0,
        senders=seed % 5 == 2,
        resets=dice.choice((1, 2)) if ordered and dice.random() < 0.1 else 0,
    )
