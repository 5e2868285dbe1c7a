"""`--profile SECTION`: where a section's CPU time goes, by function.

Every thread is profiled, by its own CPU clock, so that waiting costs nothing and nobody's time is
counted twice. Profiling makes calls three to five times as slow: read the order and the shares,
not the seconds; work inside C code weighs less than it seems.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from schemas import ENTITIES
from tests.bench import copying, judging, mix, validation, writers
from tests.bench.embedded_path import publish_all
from tests.bench.running import GRACE_SECONDS, RECORD_LIMIT, Run, opened
from tests.bench.setting import Bench
from worker import log
from worker.clock import Clock
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names
from worker.engine.worker import Worker
from worker.index.store import IndexStore
from worker.waiting import together

LINES = 25


def profile(bench: Bench, section: str) -> None:
    """Print the functions that use the most CPU time themselves."""
    if section in ("embedded", "kafka"):
        _worker(bench, section)
    elif section == "validation":
        items = validation.mixed_items(bench.records, 0.01)
        with bench.folder() as folder:
            store = validation.filled_index(folder / "index", items)
            try:
                _profiled(partial(validation.decode_and_look, items, store))
            finally:
                store.close()
    elif section == "task":
        _profiled(partial(judging.judge_all, judging.prepared(bench.records, mix.BAD_SHARE)))
    else:
        entity = ENTITIES[writers.TEN_COLUMNS]
        blocks = list(mix.blocks(mix.canonical()[entity.name], writers.ROWS))
        _profiled(partial(writers.producer(section), entity, blocks))


SECTIONS = ("validation", "task", "embedded", "kafka", "csv", "json", "xlsx")


def _worker(bench: Bench, kind: str) -> None:
    """A worker in this process, on records that were sent beforehand."""
    names = Names(f"bench-profile-{kind}" if kind == "kafka" else "buddy")
    with bench.folder() as folder:
        if kind == "kafka":
            url = f"kafka://{bench.kafka()}"
            messages = mix.outgoing(names, mix.mixed(bench.records))
            records, _ = asyncio.run(copying.prepare(url, names, messages))
        else:
            url = f"embedded:{folder / 'broker'}"
            records, _ = asyncio.run(publish_all(bench, folder))
        log.configure("error")
        bench.say(f"profiling a worker on {records:,} records")
        _profiled(lambda: asyncio.run(_work(url, names, folder, records)))


async def _work(url: str, names: Names, folder: Path, records: int) -> None:
    stop = asyncio.Event()
    # A broker of its own for the worker: what the watcher reads is not to be held for it.
    async with opened(url) as broker, opened(url) as watching:
        rules = TaskSettings(names=names, grace=GRACE_SECONDS * 1000, record_limit=RECORD_LIMIT)
        worker = Worker(broker, rules, IndexStore(folder / "index"), Clock())

        async def watch() -> None:
            await Run(names, [], records).settle(watching)

        await together(stop, worker.run(stop), watch())


def _profiled(work: Callable[[], object]) -> None:
    with _every_thread() as profiles:
        work()
    main, *threads = profiles
    stats = pstats.Stats(main)
    for each in threads:
        each.create_stats()
        if each.stats:
            stats.add(each)
    stats.sort_stats("tottime").print_stats(LINES)


@contextmanager
def _every_thread() -> Iterator[list[cProfile.Profile]]:
    """The profile of this thread, then of each that is started meanwhile."""
    profiles = [cProfile.Profile(time.thread_time)]

    def begin(*_: object) -> None:
        # Called by each new thread at its first event; from then on its own profile is.
        profiles.append(cProfile.Profile(time.thread_time))
        profiles[-1].enable()

    threading.setprofile(begin)
    profiles[0].enable()
    try:
        yield profiles
    finally:
        profiles[0].disable()
        threading.setprofile(None)
