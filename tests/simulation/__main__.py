"""`python -m tests.simulation --seeds FROM:TO [--jobs N]`, or `--replay SEED [--steps]`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.promises import Broken
from tests.simulation.schedule import Run

_CHUNK = 200


def failure(seed: int) -> str | None:
    """What is wrong with the run of a seed, in one line."""
    try:
        Run(seed).play()
    except Broken as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 -- the core must raise nothing at all
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    return None


def failures(seeds: range) -> list[tuple[int, str]]:
    """The seeds whose runs fail, and why."""
    return [(seed, found) for seed in seeds if (found := failure(seed)) is not None]


def _chunks(seeds: range) -> Iterator[range]:
    for start in range(seeds.start, seeds.stop, _CHUNK):
        yield range(start, min(seeds.stop, start + _CHUNK))


def _many(seeds: range, jobs: int) -> int:
    began = shown = time.monotonic()
    done = failed = 0
    with ProcessPoolExecutor(jobs) as pool:
        chunks = list(_chunks(seeds))
        for chunk, found in zip(chunks, pool.map(failures, chunks), strict=True):
            done += len(chunk)
            failed += len(found)
            for seed, why in found:
                print(f"seed {seed}: {why}", flush=True)
            now = time.monotonic()
            if now - shown > 60 or done == len(seeds):
                shown = now
                print(f"{done} seeds, {failed} failed, {done / (now - began):.0f} a second")
    return 1 if failed else 0


def _replay(seed: int, steps: bool) -> int:
    run = Run(seed, print if steps else None)
    print({n: getattr(run.settings, n) for n in run.settings.__struct_fields__ if n != "dice"})
    try:
        run.play()
    except Broken as error:
        print(f"seed {seed}, step {run.steps}: {error}")
        return 1
    for source, outcome in run.promises.outcomes.items():
        print(source, outcome.kind, *outcome.codes)
    print(f"seed {seed}: {run.steps} steps, every promise kept")
    return 0


def main() -> int:
    """Exit code 1 if any seed fails."""
    parser = argparse.ArgumentParser(prog="tests.simulation")
    parser.add_argument("--seeds", default="0:1000", help="FROM:TO, TO excluded")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--steps", action="store_true", help="print every step of the replay")
    wanted = parser.parse_args()
    if wanted.replay is not None:
        return _replay(wanted.replay, wanted.steps)
    first, _, last = wanted.seeds.partition(":")
    return _many(range(int(first), int(last)), wanted.jobs)


if __name__ == "__main__":
    sys.exit(main())
