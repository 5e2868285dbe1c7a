"""Back-pressure: memory is bounded whatever comes first, and nothing waits for itself."""

from __future__ import annotations

import pytest

from schemas import ENTITIES
from tests.contract.worker_kit import Running, Stage, checkin, event, feedback
from tests.unit.rows_kit import match, milestone, user
from worker.engine import loop
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 2
BATCH = 100
MAX_PARKED = 50
LIMITS = {"records": MAX_PARKED}
FEW_BYTES = {"bytes": TASKS * MAX_PARKED * 2_500}
"""Half of the room is for the others: for as many as with the limit in records."""
USERS = 400
MATCHES = 1_000
NOBODY = 900_000

OTHERS = [entity for entity in ENTITIES if entity not in ("users", "matches")]

MOST = MAX_PARKED // TASKS + 2 * BATCH
"""Of matches, and of the others, in one task: below the limit a task takes what is in its inbox,
which is read on until it holds a batch or more."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all of it would be one batch."""
    monkeypatch.setattr(loop, "BATCH", BATCH)


async def send_users_last(stage: Stage) -> None:
    """Everything that refers to others first, and nobody who is referred to before the end."""
    of = [(20_000 + n, 10_000 + n % MATCHES) for n in range(1_500)]
    await stage.send("feedback", *(feedback(*ids) for ids in of))
    await stage.send("events", *(event(*ids) for ids in of))
    await stage.send("checkins", *(checkin(*ids) for ids in of))
    await stage.send("milestones", *(milestone(1 + n, n % USERS) for n in range(500)))
    await stage.send("milestones", *(milestone(1 + n, NOBODY) for n in range(50)))
    rows = [match(10_000 + n, n % USERS, (n + 1) % USERS) for n in range(MATCHES)]
    await stage.send("matches", *rows)
    await stage.send("users", *(user(n) for n in range(USERS)))


def inputs_of(stage: Stage, *entities: str) -> set[Partition]:
    return {Partition(stage.names.input(name), q) for name in entities for q in range(TASKS)}


def check_bounds(running: Running) -> None:
    print(f"most parked: {dict(running.most)}")
    for most in running.most.values():
        assert most <= MOST


async def all_is_judged(stage: Stage) -> None:
    await stage.judged()
    assert stage.verdicts(stage.outcomes) == {
        "accepted": len(stage.outcomes) - 50,
        "rejected orphaned_user_id": 50,
    }


@pytest.mark.parametrize(
    ("limits", "grace"), [(LIMITS, 0), (FEW_BYTES, 3_000)], ids=["records, no grace", "bytes"]
)
async def test_users_last_and_the_limit_reached_all_is_judged_in_the_end(
    stage: Stage, limits: dict[str, int], grace: int
) -> None:
    await send_users_last(stage)
    running = await stage.start(limits=limits, grace=grace)
    await all_is_judged(stage)
    check_bounds(running)
    await stage.books_balance()


async def test_what_is_paused_at_the_limit_and_what_is_not(stage: Stage) -> None:
    await send_users_last(stage)
    running = await stage.start(limits=LIMITS, held={"users"})
    rest = inputs_of(stage, "matches", *OTHERS)
    await stage.until(lambda: running.paused == rest, "everything is paused but the users")
    lag = sum(
        end - running.loop._reader.position(place)
        for place, (_, end, _) in (await stage.broker.spans(running.paused)).items()
    )
    assert lag > 4_000, "most of it is left on the broker"
    check_bounds(running)
    running.held.clear()
    await all_is_judged(stage)
    check_bounds(running)
    await stage.books_balance()


async def test_a_record_larger_than_the_share_of_its_task_pauses_the_other_tasks(
    stage: Stage,
) -> None:
    running = await stage.started(limits={"bytes": 1}, grace=3_600_000)
    await stage.send("milestones", milestone(1, 1))
    others = inputs_of(stage, *OTHERS)
    await stage.until(lambda: running.parked() == 1, "it is parked")
    await stage.until(lambda: running.paused == others, "the others pause in all tasks")
    await stage.send("milestones", *(milestone(1 + n, n) for n in range(1, 20)))
    await stage.send("users", *(user(n) for n in range(20)))
    await stage.judged()
    assert stage.verdicts(stage.outcomes) == {"accepted": len(stage.outcomes)}
    await stage.until(lambda: not running.paused, "nothing pauses")
    await stage.books_balance()


async def test_matches_are_read_though_the_others_have_reached_the_limit(stage: Stage) -> None:
    await stage.send("events", *(event(20_000 + n, 10_000 + n) for n in range(MATCHES)))
    running = await stage.started(limits=LIMITS, held={"users"}, grace=3_600_000)
    await stage.until(
        lambda: {p.topic for p in running.paused} >= {stage.names.input("events")}, "events pause"
    )
    await stage.send("matches", match(10_000, 1, 2))
    await stage.until(lambda: running.parked("matches") == 1, "the match is read, and parked")
    running.held.clear()
    await stage.send("users", *(user(n) for n in range(USERS)))
    rows = [match(10_001 + n, n % USERS, (n + 1) % USERS) for n in range(MATCHES - 1)]
    await stage.send("matches", *rows)
    await stage.judged()
    assert stage.verdicts(stage.outcomes) == {"accepted": len(stage.outcomes)}
    check_bounds(running)
    await stage.books_balance()


async def test_at_the_limit_by_orphans_alone_it_goes_on(stage: Stage) -> None:
    await stage.send("milestones", *(milestone(1 + n, NOBODY + n) for n in range(1_500)))
    await stage.send("matches", *(match(10_000 + n, NOBODY, n) for n in range(1_500)))
    running = await stage.start(limits=LIMITS)
    await stage.judged()
    assert stage.verdicts(stage.outcomes) == {"rejected orphaned_user_id": 3_000}
    check_bounds(running)
    await stage.books_balance()


async def test_two_workers_at_the_limit(stage: Stage) -> None:
    await send_users_last(stage)
    workers = [await stage.start(name, limits=LIMITS) for name in ("one", "two")]
    await all_is_judged(stage)
    for running in workers:
        print(f"most parked: {dict(running.most)}")
        for most in running.most.values():
            assert most <= MAX_PARKED + 2 * BATCH  # one task may be all it has
    await stage.books_balance()
