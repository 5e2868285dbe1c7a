"""The pure core alone, on batches of a backlog: decoding by column, and rounds of one task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

import msgspec

from schemas import ENTITIES
from tests.bench import mix, validation
from tests.bench.figures import Figure, Timing, alternate
from tests.bench.setting import Bench
from worker.clock import Clock
from worker.core.at_once import sorters
from worker.core.columns import ColumnDecoder
from worker.core.known import IndexDelta, Known
from worker.core.recent import RecentRows
from worker.core.round import Round, TaskBatch
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import TASK_INPUTS, Names
from worker.demo.record import Record
from worker.stream import Message

BATCH = 2_000
SKEW = 60


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


EVERYTHING = Everything()


def run(bench: Bench) -> list[Figure]:
    """Records a second."""
    figures = []
    for bad_share, title in ((0.0, "good records"), (mix.BAD_SHARE, "3 % bad")):
        batches = prepared(bench.records, bad_share)
        items = validation.mixed_items(bench.records, bad_share)
        with bench.folder() as folder:
            index = validation.filled_index(folder / "index", items)
            try:
                by_column, alone, msgspec_alone, known, looked_up = alternate(
                    [
                        partial(decode_by_column, by_entity(batches)),
                        partial(validation.decode_all, items),
                        partial(_msgspec_alone, validation.bare(items)),
                        partial(judge_all, batches),
                        partial(judge_all, batches, index),
                    ]
                )
            finally:
                index.close()
        records = sum(len(batch.messages) for batch in batches)
        written = judge_all(batches)
        beside = {
            f"one by one ({_cpu(alone, len(items))})": len(items) / alone.wall,
            f"msgspec alone ({_cpu(msgspec_alone, len(items))})": len(items) / msgspec_alone.wall,
        }
        notes = f"{written / records:.2f} messages out for each record in"
        figures += [
            _figure(f"decoder of batches: demo mix, {title}", by_column, records, beside=beside),
            _figure(f"rounds of one task: demo mix, {title}", known, records, notes),
            _figure(f"rounds of one task and index: demo mix, {title}", looked_up, records),
        ]
    return figures


def _figure(
    name: str, timing: Timing, records: int, note: str = "", beside: dict[str, float] | None = None
) -> Figure:
    return Figure(
        section="task",
        name=name,
        value=records / timing.wall,
        unit="records/s",
        beside=beside or {},
        note="; ".join(filter(None, [_cpu(timing, records), note])),
    )


def _cpu(timing: Timing, records: int) -> str:
    return f"{timing.cpu / records * 1e6:.2f} µs of CPU a record"


def by_entity(batches: Sequence[TaskBatch]) -> list[tuple[ColumnDecoder, list[Message]]]:
    """The messages of each batch by entity, each with its decoder."""
    names, known = Names(), sorters()
    found = []
    for batch in batches:
        for entity in ENTITIES:
            messages = [m for m in batch.messages if m.topic == names.input(entity)]
            found.append((known[entity].decoder, messages))
    return found


def decode_by_column(batches: Sequence[tuple[ColumnDecoder, list[Message]]]) -> None:
    """Decode the batches as columns, and by itself what is not plainly good."""
    for decoder, messages in batches:
        values, keys = [m.value for m in messages], [m.key for m in messages]
        decoder.decode(values, keys, [m.timestamp for m in messages], SKEW)


def _msgspec_alone(items: validation.Bare) -> None:
    """Decode and encode with msgspec and do nothing else."""
    encode = msgspec.json.Encoder().encode
    for decode, value in items:
        try:
            encode(decode(value))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue


def prepared(count: int, bad_share: float) -> list[TaskBatch]:
    """The demo's mix in batches of 5,000, as one task alone would read it."""
    return batches_of(mix.mixed(count, bad_share))


def batches_of(records: Iterable[Record]) -> list[TaskBatch]:
    """Records as one task alone would read them."""
    names = Names()
    now = time.time_ns() // 1_000_000
    following = dict.fromkeys(TASK_INPUTS, 0)
    rest = iter(records)
    batches = []
    while some := list(islice(rest, BATCH)):
        messages = []
        for record in some:
            key = None if record.key is None else record.key.encode()
            offset = following[record.entity]
            topic = names.input(record.entity)
            messages.append(Message(topic, 0, offset, now, key, record.value))
            following[record.entity] = offset + 1
        batches.append(TaskBatch(messages, dict(following)))
    assert set(ENTITIES) <= set(following)
    return batches


def judge_all(batches: Sequence[TaskBatch], known: Known = EVERYTHING) -> int:
    """Have a new task judge them all; how many messages it writes."""
    tasks = {0: Task(0, TaskSettings(names=Names()))}
    nothing = IndexDelta([], [])
    now = Clock().now()
    written = 0
    for batch in batches:
        recent = RecentRows(known)
        decision = Round(tasks, {0: batch}, recent).decide(nothing, now, synchronised=True)
        written += len(decision.outputs)
    return written
