"""Figures of the desk's store: rejections added and settled, bytes on disk, a summary."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure
from tests.bench.setting import Bench
from worker.core.rejection import Source
from worker.core.topics import Names
from worker.core.violations import Code, Violation
from worker.desk import queries
from worker.desk.database import FILE_NAME
from worker.desk.queries import Filter
from worker.desk.seen import RejectionSeen, Settling, key_digest
from worker.desk.store import Numbered, RejectionStore
from worker.stream import Partition

_PER_RECORD: Final = 5
"""Rejections for each record of the bench: a million unless it is told otherwise."""
_BATCH: Final = 5_000
_START: Final = 1_764_547_200_000
_SPAN: Final = 30 * 86_400_000
_CODES: Final = (Code.INVALID_ENUM, Code.INVALID_EMAIL, Code.INVALID_UUID, Code.TEXT_TOO_LONG)
_FIELDS: Final = ("role", "email", "id", "first_name", "last_name")
_PARTITIONS: Final = 4
_FILTERS: Final = {
    "all": Filter(),
    "a code": Filter(code="invalid_email"),
    "a producer and a partition": Filter(producer="p1", partition=2),
    "12 days and some minutes": Filter(since=_START + 7 * 60_000, until=_START + _SPAN * 2 // 5),
    "a key": Filter(entity="users", key="17"),
}


def run(bench: Bench) -> list[Figure]:
    """Rejections spread over 30 days, of 20 kinds, three producers and four partitions."""
    count = _PER_RECORD * bench.records
    with tempfile.TemporaryDirectory(prefix="buddy-bench-") as folder:
        return list(_run(Path(folder) / "desk", count))


def _run(directory: Path, count: int) -> Iterator[Figure]:
    store = RejectionStore(directory, Names())
    seconds = 0.0
    for batch in _batches(count):
        ends = {each.partition: each.offset + 1 for each in batch}
        seconds += _seconds(partial(store.apply, batch, [], ends, {}, {}))
    yield _figure("rejections added", count / seconds, "1/s")
    rows = [
        Settling(
            "users", key_digest("users", str(n)), _START + _SPAN, 0, 0, deleted=False, judged=0
        )
        for n in range(0, count, 7)
    ]
    seconds = _seconds(partial(store.apply, [], rows, {}, {}, {}))
    yield _figure("rejections settled", len(rows) / seconds, "1/s")
    for name, chosen in _FILTERS.items():
        milliseconds = 1000 * _seconds(partial(queries.summary, store, chosen))
        yield _figure(f"summary of {name}", milliseconds, "ms", aim=200.0)
    store.close()
    yield _figure("opening", 1000 * _seconds(partial(_open, directory)), "ms")
    size = (directory / FILE_NAME).stat().st_size
    yield _figure("disk", size / count, "bytes/rejection", aim=100.0)


def _open(directory: Path) -> None:
    """Open the store as a command does, which compares its checksum."""
    RejectionStore(directory, Names()).close()


def _batches(count: int) -> Iterator[list[Numbered]]:
    rng = random.Random(1)
    offsets = [0] * _PARTITIONS
    for first in range(0, count, _BATCH):
        batch = []
        for number in range(first, min(count, first + _BATCH)):
            partition = rng.randrange(_PARTITIONS)
            seen = RejectionSeen(
                "users",
                str(number),
                datetime.fromtimestamp(0, UTC),
                Source("buddy.in.users", partition, number, ""),
                [Violation(rng.choice(_CODES), rng.choice(_FIELDS), "", "error")],
                producer=f"p{rng.randrange(3)}",
                at=_START + _SPAN * number // count,
            )
            where = Partition("buddy.rejected.users", partition)
            batch.append(Numbered(where, offsets[partition], seen))
            offsets[partition] += 1
        yield batch


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _figure(name: str, value: float, unit: str, aim: float | None = None) -> Figure:
    return Figure(section="desk", name=name, value=value, unit=unit, aim=aim, at_most=True)
