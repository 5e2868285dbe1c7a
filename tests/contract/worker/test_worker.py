"""Workers on a broker: several at once, stopped, left for dead; expired input; second verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas import ENTITIES
from tests.contract.broker_kit import Another, Expire
from tests.contract.helpers import delete_all
from tests.contract.worker_kit import MovingClock, Stage, at, checkin, holders, two
from tests.unit.rows_kit import match, milestone, user, uuid
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.errors import BrokerUnavailable
from worker.stream import Message, Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 4
NOBODY = 900_000
LONG = 3_600_000
WEEK = 7 * 24 * 3600 * 1000


@pytest.fixture
def expire(kind: str, broker: Broker, clock: MovingClock, request: pytest.FixtureRequest) -> Expire:
    """Makes everything expire that is in a partition of an input now."""

    async def expire_embedded(_partition: Partition) -> None:
        assert isinstance(broker, EmbeddedBroker)
        clock.put_forward(WEEK + 60_000)
        await broker.maintain()

    async def expire_kafka(partition: Partition) -> None:
        await delete_all(broker, request.getfixturevalue("kafka_address"), partition)

    return expire_embedded if kind == "embedded" else expire_kafka


# --- two at once -------------------------------------------------------------------------------


async def test_what_the_other_worker_accepts_releases_what_is_parked(stage: Stage) -> None:
    one, other = await two(stage, grace=LONG)
    ours, theirs = min(one.tasks), min(other.tasks)
    late = await stage.send("milestones", milestone(1, 1), partition=ours)
    late += await stage.send("milestones", milestone(2, 2), partition=theirs)
    late += await stage.send("checkins", checkin(20, 10), partition=ours)
    late += await stage.send("checkins", checkin(21, 11), partition=theirs)
    late += await stage.send("matches", match(10, 1, 2), partition=theirs)
    late += await stage.send("matches", match(11, 2, 1), partition=ours)
    await stage.until(lambda: one.parked() == other.parked() == 3, "everything is parked")
    await stage.send("users", user(1), partition=theirs)
    await stage.send("users", user(2), partition=ours)
    await stage.judged()
    assert stage.verdicts(late) == {"accepted": len(late)}
    await stage.books_balance()


async def test_contested_addresses_have_one_holder_each(stage: Stage) -> None:
    await two(stage)
    claims: list[str] = []
    await asyncio.gather(
        *(_send_to(stage, claims, n % TASKS, [at(n, f"a{n % 10}@example.org")]) for n in range(50))
    )
    await stage.judged()
    assert stage.verdicts(claims) == {"accepted": 10, "rejected duplicate_email": 40}
    assert await holders(stage) == {f"a{n}@example.org": 1 for n in range(10)}
    await stage.books_balance()


async def test_two_users_swap_their_addresses(stage: Stage) -> None:
    await two(stage)
    await stage.judged(await stage.send("users", at(1, "a@x.org"), partition=0))
    await stage.judged(await stage.send("users", at(2, "b@x.org"), partition=3))
    # At once: both are still taken.
    both = await stage.send("users", at(1, "b@x.org"), partition=0)
    both += await stage.send("users", at(2, "a@x.org"), partition=3)
    await stage.judged()
    assert stage.verdicts(both) == {"rejected duplicate_email": 2}
    for n, address, partition in ((1, "c@x.org", 0), (2, "a@x.org", 3), (1, "b@x.org", 0)):
        (place,) = await stage.send("users", at(n, address), partition=partition)
        await stage.judged()
        assert stage.outcomes[place] == ["accepted"], address
    rows = await stage.rows("users")
    emails = {key.decode(): row["email"] for key, row in rows.items()}
    assert emails == {uuid(1): "b@x.org", uuid(2): "a@x.org"}
    await stage.books_balance()


async def test_an_address_freed_by_a_deletion_is_granted_to_the_next_claim(stage: Stage) -> None:
    await two(stage)
    for n in range(1, 13):  # addresses of every owner, users of every partition
        address = f"n{n % 4}@x.org"
        (place,) = await stage.send("users", at(n, address), partition=n % TASKS)
        (refused,) = await stage.send("users", at(100 + n, address), partition=(n + 2) % TASKS)
        await stage.judged([place])
        (gone,) = await stage.send("users", (uuid(n).encode(), None), partition=n % TASKS)
        await stage.judged([refused, gone])
        assert stage.outcomes[gone] == ["deleted"]
        if stage.outcomes[place] == ["accepted"]:
            continue
        # The other one was first, whose partition nobody puts in order.
        assert stage.outcomes[refused] == ["accepted"]
        (gone,) = await stage.send("users", (uuid(100 + n).encode(), None), partition=(n + 2) % 4)
        await stage.judged()
    await stage.judged()
    assert max((await holders(stage)).values(), default=0) <= 1
    await stage.books_balance()


async def test_one_of_two_is_stopped_in_the_middle(stage: Stage) -> None:
    one, other = await two(stage)
    users = [at(n, f"u{n % 900}@x.org") for n in range(1_000)]
    await stage.send("matches", *(match(10_000 + n, n % 900, 1) for n in range(1_000)))
    await stage.send("users", *users[:500])

    async def some() -> bool:
        await stage.look()
        return sum(map(bool, stage.outcomes.values())) > 200

    await stage.until_asked(some, lambda: "some outcomes")
    sending = asyncio.create_task(stage.send("users", *users[500:]))
    await stage.end(one)
    await sending
    await stage.until(lambda: set(other.tasks) == set(range(TASKS)), "the other runs everything")
    await stage.judged()
    assert stage.verdicts(stage.outcomes)["rejected duplicate_email"] == 100
    assert set((await holders(stage)).values()) == {1}
    await stage.books_balance()


# --- stopped, or left for dead -----------------------------------------------------------------


async def parked_everywhere(stage: Stage, first: int) -> list[str]:
    """Records in every partition whose user, `first` and counting, has not come yet."""
    places = []
    for q in range(TASKS):
        rows = [milestone(first + n, first + n) for n in range(q, 40, TASKS)]
        places += await stage.send("milestones", *rows, partition=q)
        places += await stage.send("matches", match(first + q, first + q, first), partition=q)
        places += await stage.send("checkins", checkin(first + q, first + q), partition=q)
    return places


async def test_what_is_parked_is_taken_up_after_a_restart(stage: Stage) -> None:
    running = await stage.started(grace=LONG)
    places = await parked_everywhere(stage, 1)
    lost = await stage.send("milestones", milestone(70, NOBODY), milestone(71, NOBODY))
    await stage.until(lambda: running.parked() == len(places) + 2, "everything is parked")
    assert len(await stage.parked()) == 0, "they are held"
    await stage.end(running)
    assert len(await stage.parked()) == len(places) + 2, "nobody may come before they expire"

    # Some come while nobody is there, some afterwards; some records too.
    await stage.send("users", *(user(1 + n) for n in range(20)))
    more = await parked_everywhere(stage, 101)
    again = await stage.started("two", grace=LONG)
    await stage.send("users", *(user(1 + n) for n in range(20, 40)))
    await stage.send("users", *(user(101 + n) for n in range(40)))
    await stage.judged([*places, *more])
    assert stage.verdicts([*places, *more]) == {"accepted": len(places) + len(more)}
    assert stage.verdicts(lost) == {"none": 2}
    assert again.parked() == 2
    # The grace goes on over a restart.
    stage.clock.put_forward(LONG)
    await stage.judged()
    assert stage.verdicts(lost) == {"rejected orphaned_user_id": 2}
    await stage.books_balance()


async def test_offsets_of_the_group_are_not_trusted(stage: Stage, broker: Broker) -> None:
    running = await stage.started()
    await stage.send("users", *(user(n) for n in range(40)))
    await stage.send("milestones", *(milestone(1 + n, n) for n in range(40)))
    await stage.judged()
    await stage.end(running)

    inputs = [Partition(stage.names.input(entity), q) for entity in ENTITIES for q in range(TASKS)]
    for far, offset in ((False, 0), (True, 1_000)):
        foreign = await broker.committer(f"{stage.names.prefix}-foreign", stage.group)
        await foreign.commit([], dict.fromkeys(inputs, offset))
        await foreign.close()
        assert await broker.committed(stage.group, inputs) == dict.fromkeys(inputs, offset)
        running = await stage.started("two" if far else "one")
        await stage.send("users", *(user(offset + 100 + n) for n in range(40)))
        await stage.judged()
        await stage.end(running)
    await stage.books_balance()


async def test_the_group_is_told_within_a_second_where_a_task_reads(
    stage: Stage, broker: Broker
) -> None:
    await stage.started()
    places = [Partition(stage.names.input("users"), q) for q in range(TASKS)]
    for first in (0, 100):
        await stage.send("users", *(user(first + n) for n in range(40)))
        await stage.judged()
        ends = {place: span.end for place, span in (await broker.spans(places)).items()}
        stage.clock.put_forward(1_000)

        async def told(wanted: dict[Partition, int] = ends) -> bool:
            return await broker.committed(stage.group, places) == wanted

        await stage.until_asked(told, lambda: "the group knows")
    await stage.books_balance()


async def test_a_worker_left_for_dead_is_fenced_and_nothing_is_doubled(stage: Stage) -> None:
    frozen = await stage.started("frozen", grace=LONG)
    places = await parked_everywhere(stage, 1)
    await stage.until(lambda: frozen.parked() == len(places), "everything is parked")
    await frozen.freeze()
    # It goes on to judge these, and means to commit.
    await stage.send("users", *(user(1 + n) for n in range(20)))
    more = await parked_everywhere(stage, 101)
    await stage.until(lambda: frozen.loop._rounds.commit is not None, "a commit is under way")
    other = await stage.started("other", grace=LONG)
    await stage.send("users", *(user(1 + n) for n in range(20, 40)))
    await stage.send("users", *(user(101 + n) for n in range(40)))
    await stage.judged()
    frozen.thaw()
    await stage.until(lambda: not frozen.tasks, "it knows")
    assert frozen.counted("buddy_transactions_total", outcome="fenced") == 1
    assert other.counted("buddy_transactions_total", outcome="fenced") == 0
    assert stage.verdicts([*places, *more]) == {"accepted": len(places) + len(more)}
    await stage.send("users", *(user(200 + n) for n in range(20)))
    await stage.judged()
    await stage.books_balance()


async def test_an_outage_that_begins_while_a_worker_starts_is_waited_out(
    stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await another()

    def once_away(name: str) -> None:
        there, away = getattr(broker, name), [True]

        async def ask(*about: Any, **options: Any) -> Any:
            if away:
                away.pop()
                raise BrokerUnavailable("away")
            return await there(*about, **options)

        monkeypatch.setattr(broker, name, ask)

    once_away("spans")
    once_away("join")
    with capture_logs() as said:
        await stage.started(broker=broker)
    assert [line["event"] for line in said].count("broker_unavailable") == 2
    await stage.send("users", user(1))
    await stage.judged()
    await stage.books_balance()


async def test_an_outage_while_the_reader_of_the_inputs_connects_is_waited_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await stage.started()
    worker = running.loop
    connecting, away = asyncio.Event(), asyncio.Event()

    async def no_read(*_: Any) -> Any:
        connecting.set()
        await away.wait()
        raise BrokerUnavailable("away")

    async def no_spans(*_: Any, **__: Any) -> Any:
        away.set()
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(worker._reader, "read", no_read)
        await connecting.wait()
        patch.setattr(worker._broker, "spans", no_spans)
        stage.clock.put_forward(5_001)  # the lag is to be measured
        worker._updater.news.set()
        await stage.until(
            lambda: any(entry["event"] == "broker_unavailable" for entry in logs), "it is noticed"
        )
        await stage.until(lambda: worker._reading is None or worker._reading.done(), "both failed")
    (lost,) = await stage.send("milestones", milestone(1, NOBODY))
    await stage.judged()
    assert stage.outcomes[lost] == ["rejected orphaned_user_id"]
    await stage.books_balance()


async def test_pauses_grow_though_no_task_runs_for_a_while_after_each_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read then, so nothing fails. That is no sign that the outage is over."""
    running = await stage.started()
    worker = running.loop

    async def no_read(*_: Any) -> list[Message]:
        if running.tasks:
            raise BrokerUnavailable("away")
        await asyncio.sleep(0.01)
        return []

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(worker._reader, "read", no_read)

        def pauses() -> list[float]:
            return [line["retry_in"] for line in logs if line["event"] == "broker_unavailable"]

        for number in range(1, 5):
            await stage.until(lambda n=number: len(pauses()) >= n, "it fails again")  # type: ignore[misc]
            with monkeypatch.context() as held:
                held.setattr(worker._tasks._pause, "ready", lambda: False)
                stage.clock.put_forward(20_000)
                rounds = running.counted("buddy_rounds_total")
                await stage.until(
                    lambda r=rounds: running.counted("buddy_rounds_total") > r + 2,  # type: ignore[misc]
                    "it goes on without a task",
                )
        assert pauses()[3] >= 0.8
    await stage.send("users", user(1))
    await stage.judged()
    await stage.books_balance()


# --- expired input -----------------------------------------------------------------------------


@pytest.mark.parametrize("running_meanwhile", [False, True], ids=["stopped", "behind"])
async def test_input_that_expired_is_an_error_and_it_goes_on_at_the_earliest(
    stage: Stage, expire: Expire, running_meanwhile: bool
) -> None:
    place = Partition(stage.names.input("milestones"), 2)
    await stage.started()
    await stage.send("users", *(user(n) for n in range(1, 10)))
    await stage.send("milestones", *(milestone(n, n) for n in range(1, 4)), partition=2)
    await stage.judged()
    running = stage.workers[0]
    if running_meanwhile:
        running.held = {"milestones"}
        # A read may have been under way.
        rounds = running.counted("buddy_rounds_total")
        await stage.until(lambda: running.counted("buddy_rounds_total") > rounds + 2, "rounds")
    else:
        await stage.end(running)
    gone = await stage.send("milestones", *(milestone(n, n) for n in range(4, 9)), partition=2)
    await expire(place)
    (there,) = await stage.send("milestones", milestone(9, 9), partition=2)
    with capture_logs() as logs:
        if running_meanwhile:
            running.held.clear()
        else:
            running = await stage.started()
        await stage.judged([there])
    assert stage.verdicts([there, *gone]) == {"accepted": 1, "none": 5}
    said = [
        entry
        for entry in logs
        if entry["event"] == "input_expired" and entry["topic"] == place.topic
    ]
    assert [(entry["log_level"], entry["partition"], entry["count"]) for entry in said] == [
        ("error", 2, 5)
    ]
    assert running.counted("buddy_input_expired_records_total", entity="milestones") == 5
    assert running.health.lost == 5
    reasons = running.health.reasons(stage.clock.steady())
    assert [r for r in reasons if "were gone" in r] == [
        "worker: 5 records were gone before they were read"
    ]
    for gone_ in gone:
        del stage.outcomes[gone_]
    await stage.books_balance()


async def _send_to(
    stage: Stage, places: list[str], partition: int, rows: Sequence[tuple[bytes, bytes]]
) -> None:
    places += await stage.send("users", *rows, partition=partition)
