"""Many seeds on all cores: what fails is said at once and the rest goes on; at the end a sum."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing import Pool
from signal import SIG_IGN, SIGINT, signal
from typing import Final, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tests.proofs.simulation.promises import Broken
from tests.proofs.simulation.schedule import Run

_CHUNK: Final = 20
_EVERY: Final = 60
"""Seconds between two lines where no progress bar can be seen."""


class Played(NamedTuple):
    """What came of some seeds: those that failed and why, and what happened in all of them."""

    seeds: range
    failures: list[tuple[int, str]]
    counts: Counter[str]


def play(seeds: range) -> Played:
    """Run these seeds, one after the other."""
    played = Played(seeds, [], Counter())
    for seed in seeds:
        run = Run(seed)
        if (why := failure(run)) is not None:
            played.failures.append((seed, why))
        played.counts.update(run.counts())
    return played


def play_all(seeds: range, jobs: int, console: Console) -> int:
    """Run them in so many processes. Exit code 1 if any fails, 130 if it is interrupted.

    An interrupted run says from which seed on it is to be taken up again.
    """
    began = time.monotonic()
    counts: Counter[str] = Counter()
    failed = 0
    left = dict.fromkeys(_chunks(seeds))
    try:
        for played in _as_they_come(seeds, jobs, console):
            del left[played.seeds]
            for seed, why in played.failures:
                console.print(f"seed {seed}: {why}", markup=False, highlight=False, soft_wrap=True)
            failed += len(played.failures)
            counts.update(played.counts)
    except KeyboardInterrupt:
        console.print("interrupted")
    done = len(seeds) - sum(map(len, left))
    happened = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    took = time.monotonic() - began
    console.print(f"{done:,} seeds, {failed} failed, in {took:,.0f} s: {happened}", soft_wrap=True)
    if left:
        console.print(f"go on with SEEDS={next(iter(left)).start}:{seeds.stop}")
        return 130
    return 1 if failed else 0


def failure(run: Run) -> str | None:
    """What is wrong with a run, in one line."""
    try:
        run.play()
    except Broken as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 -- a worker must raise nothing at all
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return None


def _chunks(seeds: range) -> Iterator[range]:
    for start in range(seeds.start, seeds.stop, _CHUNK):
        yield range(start, min(seeds.stop, start + _CHUNK))


def _as_they_come(seeds: range, jobs: int, console: Console) -> Iterator[Played]:
    """What came of each chunk, the first that is done first, under a progress bar.

    Without a terminal, where no bar can be seen, a line now and then stands for it.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    shown = time.monotonic()
    # Ctrl-C is for this process to answer; leaving the pool ends the others.
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        Pool(jobs, initializer=signal, initargs=(SIGINT, SIG_IGN)) as pool,
    ):
        task = bar.add_task("seeds", total=len(seeds))
        done = 0
        for played in pool.imap_unordered(play, _chunks(seeds)):
            yield played
            done += len(played.seeds)
            bar.advance(task, len(played.seeds))
            if bar.disable and time.monotonic() - shown >= _EVERY:
                shown = time.monotonic()
                console.print(f"{done:,} of {len(seeds):,} seeds")
