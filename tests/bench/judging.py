"""The pure core alone: `Task.judge` on batches, with an index that knows everything."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from schemas import ENTITIES
from tests.bench import mix
from tests.bench.figures import Figure, alternate
from tests.bench.setting import Bench
from worker.brokers.contract import Message
from worker.clock import Clock
from worker.core.ahead import Ahead
from worker.core.outbox import Rules
from worker.core.task import INPUTS, Task
from worker.demo.record import Record
from worker.index.contract import Known, Learned
from worker.topics import Names

BATCH = 5_000


class Batch(NamedTuple):
    """What one round hands to a task."""

    messages: list[Message]
    positions: dict[str, int]


class Everything:
    """An index without a limit to its knowledge, in which every address is free."""

    def user(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        return True

    def match(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        return True

    def unknown_users(self, ids: Iterable[bytes]) -> list[bytes]:
        return []

    def unknown_matches(self, ids: Iterable[bytes]) -> list[bytes]:
        return []

    def taken(self, address: bytes, user: bytes) -> bool:
        return False

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        return ()


def run(bench: Bench) -> list[Figure]:
    """Records a second."""
    figures = []
    for bad_share, title in ((0.0, "good records"), (mix.BAD_SHARE, "3 % bad")):
        batches = prepared(bench.records, bad_share)
        records = sum(len(batch.messages) for batch in batches)
        (timing,) = alternate([partial(judge_all, batches)])
        written = judge_all(batches)
        figures.append(
            Figure(
                section="task",
                name=f"Task.judge: demo mix, {title}",
                value=records / timing.wall,
                unit="records/s",
                note=f"{written / records:.2f} messages out for each record in; "
                f"{records / timing.cpu:,.0f} per CPU second",
            )
        )
    return figures


def prepared(count: int, bad_share: float) -> list[Batch]:
    """The demo's mix in batches of 5,000, as one task alone would read it."""
    return batches_of(mix.mixed(count, bad_share))


def batches_of(records: Iterable[Record]) -> list[Batch]:
    """Records as one task alone would read them."""
    names = Names()
    now = time.time_ns() // 1_000_000
    following = dict.fromkeys(INPUTS, 0)
    rest = iter(records)
    batches = []
    while some := list(islice(rest, BATCH)):
        messages = []
        for record in some:
            key = None if record.key is None else record.key.encode()
            offset = following[record.entity]
            topic = names.inputs(record.entity)
            messages.append(Message(topic, 0, offset, now, key, record.value))
            following[record.entity] = offset + 1
        batches.append(Batch(messages, dict(following)))
    assert set(ENTITIES) <= set(following)
    return batches


def judge_all(batches: Sequence[Batch], known: Known | None = None) -> int:
    """Have a new task judge them all; how many messages it writes."""
    task = Task(0, Rules(names=Names()))
    known = known or Everything()
    now = Clock().now()
    written = 0
    for messages, positions in batches:
        nothing = Learned([], [])
        ahead = Ahead(known)
        decision = task.judge(messages, positions, nothing, ahead, now, synchronised=True)
        written += len(decision.outputs)
    return written
