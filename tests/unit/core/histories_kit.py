"""Random histories of a stream, and a world that lives through them.

They hold records good and bad, updates, deletions, contested addresses and late references.
Tasks differ in speed, the index lags, clocks move on, and tasks crash between any two steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.unit.core_kit import GRACE, World, good, to_json, uid
from worker.core.known import address_digest

PARTITIONS = 3

numbers = st.integers(1, 3)
tasks = st.integers(0, PARTITIONS - 1)


class Send(NamedTuple):
    """One record, or a deletion where the record is None; to its own place unless one is given."""

    entity: str
    record: Any
    key: str | None = None
    partition: int | None = None


class Round(NamedTuple):
    """A round of some tasks."""

    most: int | None
    only: frozenset[int]
    lag: bool
    crash: dict[int, Any]


class Tick(NamedTuple):
    """Time goes by."""

    milliseconds: int


Step = Send | Round | Tick


@st.composite
def sends(draw: st.DrawFn, *, contested: bool = True, foreign: bool = False) -> Send:
    """A record: of few ids and addresses, so that they meet."""
    number, one, two = draw(numbers), draw(numbers), draw(numbers)
    partition = draw(st.none() | tasks) if foreign else None
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2:
            email = f"a{one if contested else 10 * number + one}@example.org"
            record = good("users", number, email=email, first_name=str(two))
            return Send("users", record, None, partition)
        case 3:
            return Send("users", None, uid(number).upper(), partition)
        case 4 | 5:
            record = good("matches", number, participant_id=uid(one), buddy_id=uid(two))
            return Send("matches", record, None, partition)
        case 6:
            return Send("matches", None, uid(number), partition)
        case 7:
            record = good("milestones", number, user_id=uid(one), points=two)
            return Send("milestones", record, None, partition)
        case 8:
            record = good("checkins", number, match_id=uid(one), notes=str(two))
            return Send("checkins", record, None, partition)
        case _:
            key = uid(number)
            bad = draw(st.sampled_from([b"{", b"\xff", to_json(good("checkins", 7)), None]))
            return Send("checkins", bad, key, partition)


lags = st.booleans()


def rounds(
    *, crash: st.SearchStrategy[Any], lag: st.SearchStrategy[bool] = lags
) -> st.SearchStrategy[Round]:
    """Rounds of some tasks, of few records or many."""
    return st.builds(
        Round,
        st.none() | st.integers(1, 3),
        st.frozensets(tasks, min_size=1) | st.just(frozenset(range(PARTITIONS))),
        lag,
        st.dictionaries(tasks, crash, max_size=1),
    )


ticks = st.builds(Tick, st.sampled_from([1, GRACE // 3, GRACE, 3 * GRACE]))
crashes = st.sampled_from(["before commit", "after commit"])


def histories(**how: bool) -> st.SearchStrategy[list[Step]]:
    """Histories with everything in them."""
    steps = sends(**how) | sends(**how) | rounds(crash=crashes) | ticks
    return st.lists(steps, max_size=40)


def run(history: list[Step], *, crash: bool = True) -> World:
    """Live through a history, and let everything come to its end."""
    world = World(partitions=PARTITIONS)
    for step in history:
        match step:
            case Send():
                world.send(step.entity, step.record, step.key, partition=step.partition)
            case Round():
                one = step.crash if crash else {}
                world.round(step.most, only=step.only, lag=step.lag, crash=one)
                check_addresses(world)
            case Tick():
                world.now += step.milliseconds
    world.finish()
    check_addresses(world)
    return world


def check_addresses(world: World) -> None:
    """No two users hold one address, however far the index has come."""
    world.follow()
    for number in range(40):
        assert len(world.index.holders(address_digest(f"a{number}@example.org"))) < 2
