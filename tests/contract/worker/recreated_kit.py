"""Topics that are created anew under workers with parked records."""

from __future__ import annotations

from tests.contract.broker_kit import DeleteTopic
from tests.contract.worker_kit import Running, Stage
from tests.unit.rows_kit import match, user
from worker.brokers.contract import Broker
from worker.core.topics import wanted

TASKS = 4
LIMIT = 1024 * 1024


async def create_anew(
    stage: Stage, broker: Broker, remove: DeleteTopic, *topics: str, partitions: int = TASKS
) -> None:
    """These topics, empty, as `buddy topics create` makes them. Earlier outcomes are forgotten."""
    for topic in topics:
        await remove(topic)
    made = wanted(stage.names, partitions, LIMIT)
    await broker.create([made[topic] for topic in topics])


async def with_parked(stage: Stage) -> tuple[Running, list[str]]:
    """A worker that has accepted a user and has parked eight matches of other users."""
    worker = await stage.started(grace=3_600_000, persist_after=0)
    await stage.judged(await stage.send("users", user(500)))
    parked = await stage.send("matches", *(match(10 + n, n, n) for n in range(8)))

    async def persisted() -> bool:
        return len(await stage.parked()) == 8

    # A commit that is still under way would fail where a test removes its topics.
    await stage.until_asked(persisted, lambda: "all are parked, and their copies committed")
    return worker, parked


async def another_accepts(stage: Stage, worker: Running, parked: list[str]) -> None:
    """After this worker another one still has the eight matches, and accepts them."""
    await stage.end(worker)
    other = await stage.started("two", grace=3_600_000)
    await stage.until(lambda: other.parked() == 8, "nothing is lost")
    await stage.send("users", *(user(n) for n in range(8)))
    await stage.judged()
    assert stage.verdicts(parked) == {"accepted": 8}
