"""Definitive verdicts of workers on a broker: docs/definitive-verdicts.md, step by step."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from tests.contract.broker_kit import unique
from tests.contract.worker_kit import Row, Stage, checkin
from tests.unit.rows_kit import match, milestone, user
from worker.brokers.contract import Member
from worker.core.addresses import owner_of
from worker.core.known import address_digest
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 4
NOBODY = 900_000
"""The number of a user, or match, whom nobody ever sends."""


def backlog(many: int, users: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Matches, their check-ins, and the users that the matches refer to."""
    matches = [match(10_000 + n, n % users, (n + 1) % users) for n in range(many)]
    checkins = [checkin(20_000 + n, 10_000 + n) for n in range(many)]
    return list(matches), list(checkins), [user(n) for n in range(users)]


@pytest.mark.parametrize("held", [(), ("users",)], ids=["read-as-ever", "users-held-back"])
async def test_users_who_come_last_of_all_leave_no_orphan(
    stage: Stage, held: tuple[str, ...]
) -> None:
    matches, checkins, users = backlog(3_000, 300)
    good = await stage.send("checkins", *checkins)
    good += await stage.send("matches", *matches)
    lost = await stage.send("milestones", *(milestone(1 + n, NOBODY + n) for n in range(100)))
    lost += await stage.send("matches", *(match(40_000 + n, n, NOBODY + n) for n in range(100)))
    alone = await stage.send("checkins", *(checkin(50_000 + n, NOBODY + n) for n in range(100)))
    alone += await stage.send("checkins", *(checkin(60_000 + n, 40_000 + n) for n in range(100)))
    good += await stage.send("users", *(user(100_000 + n) for n in range(3_000)))
    good += await stage.send("users", *users)

    running = await stage.start(held=held)
    if held:
        await stage.until(lambda: running.parked() == 6_400, "all but the users is parked")
        await stage.until(lambda: running.blocked_by() != set(), "verdicts wait for the users")
        await stage.look()
        assert not any(stage.outcomes.values()), "a verdict before the users were read"
        running.held.clear()
    await stage.judged()
    assert stage.verdicts(good) == {"accepted": len(good)}
    assert stage.verdicts(lost) == {"rejected orphaned_user_id": len(lost)}
    assert stage.verdicts(alone) == {"accepted orphaned_match_id": len(alone)}
    await stage.books_balance()


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])
@pytest.mark.parametrize("entity", ["users", "matches"])
async def test_what_lies_behind_an_open_transaction_may_still_be_there(
    stage: Stage, kafka_address: str, entity: str
) -> None:
    """Kafka shows it to nobody before the transaction has ended, although it was acknowledged."""
    running = await stage.started()
    sender = AIOKafkaProducer(
        bootstrap_servers=kafka_address.removeprefix("kafka://"), transactional_id=unique("sender")
    )
    async with sender:
        await sender.begin_transaction()
        for number in range(stage.tasks):
            await sender.send_and_wait(stage.names.input(entity), b"", partition=number)
        first = await stage.send("users", *(user(n) for n in range(20)))
        then = await stage.send("matches", match(100, 0, 1), match(101, 2, 3))
        last = await stage.send("checkins", checkin(200, 100), checkin(201, 101))
        waiting = last if entity == "matches" else [*then, *last]
        await stage.until(lambda: running.parked() == len(waiting), "their references are missing")
        await stage.until(
            lambda: running.blocked_by() != set(), "verdicts wait for the transaction"
        )
        stage.clock.put_forward(60_000)
        await stage.look()
        assert not any(stage.outcomes[place] for place in waiting)
        await sender.abort_transaction()
    await stage.judged()
    assert stage.verdicts([*first, *then, *last]) == {"accepted": 24}
    await stage.books_balance()


async def test_who_never_comes_is_an_orphan_once_though_a_stream_goes_on(stage: Stage) -> None:
    await stage.started()
    lost = []
    for round_ in range(5):
        lost += await stage.send("milestones", milestone(1 + round_, NOBODY))
        await stage.send("users", *(user(round_ * 100 + n) for n in range(100)))
    await stage.judged()
    assert stage.verdicts(lost) == {"rejected orphaned_user_id": len(lost)}
    await stage.books_balance()


async def test_partitions_without_a_record_block_nothing(stage: Stage) -> None:
    await stage.started()
    (lost,) = await stage.send("milestones", milestone(1, NOBODY), partition=2)
    (alone,) = await stage.send("checkins", checkin(2, NOBODY), partition=1)
    await stage.judged()
    assert stage.outcomes[lost] == ["rejected orphaned_user_id"]
    assert stage.outcomes[alone] == ["accepted orphaned_match_id"]
    await stage.books_balance()


async def test_what_nobody_has_judged_blocks_and_is_named(stage: Stage) -> None:
    late = await stage.idle_member()
    running = await stage.start()
    async with _beating(late):
        await stage.until(
            lambda: len(running.tasks) == TASKS // 2 and running.runs(running.tasks.keys()),
            "the tasks are shared",
        )
        ours, theirs = min(running.tasks), min(set(range(TASKS)) - running.tasks.keys())
        (there,) = await stage.send("users", user(1), partition=theirs)
        (elsewhere,) = await stage.send("matches", match(10, 1, 1), partition=theirs)
        (waits,) = await stage.send("milestones", milestone(5, 1), partition=ours)
        (lost,) = await stage.send("milestones", milestone(6, NOBODY), partition=ours)
        (alone,) = await stage.send("checkins", checkin(7, NOBODY), partition=ours)
        (also,) = await stage.send("checkins", checkin(8, 10), partition=ours)
        places = {
            Partition(stage.names.input("users"), theirs),
            Partition(stage.names.input("matches"), theirs),
        }
        with capture_logs() as logs:
            await stage.until(lambda: running.parked() == 4, "all four are parked")
            await stage.until(
                lambda: running.loop._tasks.running[ours].task.parking.past_grace == 4,
                "a frontier is open",
            )
            stage.clock.put_forward(5_001)
            await stage.until(
                lambda: any(entry["event"] == "verdicts_blocked" for entry in logs), "it is logged"
            )
        (said, *_) = (entry for entry in logs if entry["event"] == "verdicts_blocked")
        assert running.blocked_by() <= places
        assert said["by"] == [f"{stage.names.input('users')}/{theirs}"]
        assert said["waiting_ms"] > 5_000
        stage.clock.put_forward(1_000)
        blocking = "buddy_verdicts_blocking_partitions"
        await stage.until(lambda: running.counted(blocking) >= 1, "the metric names it")
        await stage.look()
        assert stage.verdicts([there, elsewhere, waits, lost, alone, also]) == {"none": 6}

    other = await stage.start("two")
    await late.close()
    await stage.until(lambda: set(other.tasks) | set(running.tasks) >= set(range(TASKS)), "shared")
    await stage.judged()
    assert stage.outcomes[waits] == stage.outcomes[also] == ["accepted"]
    assert stage.outcomes[lost] == ["rejected orphaned_user_id"]
    assert stage.outcomes[alone] == ["accepted orphaned_match_id"]
    assert running.blocked_by() == set()
    await stage.books_balance()


@pytest.mark.parametrize("comes", [True, False], ids=["user-comes", "user-never-comes"])
async def test_a_checkin_waits_for_its_match_that_is_parked_itself(
    stage: Stage, comes: bool
) -> None:
    running = await stage.started(held={"users"})
    # Somebody has to be read before the match is definitely an orphan.
    await stage.send("users", user(1 if comes else 3), user(2), partition=3)
    (meeting,) = await stage.send("matches", match(10, 1, 2), partition=1)
    (seen,) = await stage.send("checkins", checkin(20, 10), partition=2)
    await stage.until(lambda: running.parked() == 2, "both are parked")
    await stage.until(
        lambda: sum(owned.task.parking.past_grace for owned in running.tasks.values()) == 2,
        "both wait",
    )
    await stage.until(
        lambda: any(
            frontier.covers_matches
            and set(frontier.advance(running.loop._updater.judged))
            == {
                Partition(stage.names.input("users"), 3),
                Partition(stage.names.input("matches"), 1),
            }
            for _, frontier in running.loop._frontiers._open
        ),
        "the frontier of the check-in holds users and the parked match",
    )
    await stage.look()
    assert stage.verdicts([meeting, seen]) == {"none": 2}
    running.held.clear()
    await stage.judged()
    if comes:
        assert stage.verdicts([meeting, seen]) == {"accepted": 2}
    else:
        assert stage.outcomes[meeting] == ["rejected orphaned_user_id"]
        assert stage.outcomes[seen] == ["accepted orphaned_match_id"]
    await stage.books_balance()


async def test_the_grace_is_waited_for_and_no_longer(stage: Stage) -> None:
    running = await stage.started(grace=3_600_000)
    (lost, saved) = await stage.send("milestones", milestone(1, NOBODY), milestone(2, 7))
    await stage.until(lambda: running.parked() == 2, "both are parked")
    await stage.send("users", user(7))
    await stage.judged([saved])
    assert stage.verdicts([lost, saved]) == {"none": 1, "accepted": 1}
    stage.clock.put_forward(3_600_000)
    await stage.judged()
    assert stage.outcomes[lost] == ["rejected orphaned_user_id"]
    await stage.books_balance()


class _beating:  # noqa: N801 -- used as a function
    """Keeps a member alive that does nothing: it asks what is its own."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._beat())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _beat(self) -> None:
        while True:
            await self._member.assignment()
            await asyncio.sleep(0.2)


async def test_a_barrier_that_no_record_waits_for_is_not_told(stage: Stage) -> None:
    running = await stage.start(grace=20_000)
    (first,) = await stage.send("matches", match(1, NOBODY, NOBODY))
    await stage.until(lambda: running.parked() == 1, "it is parked")
    stage.clock.put_forward(15_000)
    (second,) = await stage.send("matches", match(2, NOBODY, NOBODY))
    await stage.until(lambda: running.parked() == 2, "both are")
    with capture_logs() as logs:
        stage.clock.put_forward(6_000)
        await stage.until(lambda: running.parked() == 1, "the first one is judged")
        stage.clock.put_forward(6_000)
        await stage.look()
    assert "verdicts_blocked" not in {entry["event"] for entry in logs}
    assert running.blocked_by() == set()
    stage.clock.put_forward(10_000)
    await stage.judged()
    assert stage.verdicts([first, second]) == {"rejected orphaned_user_id": 2}


async def test_a_record_that_went_on_waits_for_no_frontier(stage: Stage) -> None:
    late = await stage.idle_member()
    running = await stage.start()
    async with _beating(late):
        await stage.until(
            lambda: len(running.tasks) == TASKS // 2 and running.runs(running.tasks.keys()),
            "the tasks are shared",
        )
        ours, theirs = min(running.tasks), min(set(range(TASKS)) - running.tasks.keys())
        await stage.send("users", user(1), partition=theirs)
        (waits,) = await stage.send("milestones", milestone(5, 2), partition=ours)
        task = running.loop._tasks.running[ours].task
        await stage.until(lambda: task.parking.past_grace == 1, "a frontier is open")
        # The idle member answers no claims.
        addresses = (f"u{n}@example.org" for n in count())
        own = next(a for a in addresses if owner_of(address_digest(a), TASKS) in running.tasks)
        (user_came,) = await stage.send("users", user(2, email=own), partition=ours)
        await stage.until(lambda: running.parked() == 0, "what it waited for has come")
        with capture_logs() as logs:
            stage.clock.put_forward(6_000)
            await stage.until(lambda: task.parking.past_grace == 0, "nothing waits any more")
            stage.clock.put_forward(6_000)
            await stage.look()
        assert running.loop._frontiers.waiting_since() is None
        assert "verdicts_blocked" not in {entry["event"] for entry in logs}
    await late.close()
    await stage.judged()
    assert stage.outcomes[waits] == stage.outcomes[user_came] == ["accepted"]
