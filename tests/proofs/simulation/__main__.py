"""`python -m tests.proofs.simulation --seeds FROM:TO [--jobs N]`, or `--replay SEED [--steps]`."""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console

from tests.proofs.simulation.many import play_all
from tests.proofs.simulation.promises import Broken
from tests.proofs.simulation.schedule import Run


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
    """Exit code 1 if any seed fails, 130 if it is interrupted."""
    parser = argparse.ArgumentParser(prog="tests.proofs.simulation")
    parser.add_argument("--seeds", default="0:1000", help="FROM:TO, TO excluded")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--replay", type=int, metavar="SEED")
    parser.add_argument("--steps", action="store_true", help="print every step of the replay")
    wanted = parser.parse_args()
    if wanted.replay is not None:
        return _replay(wanted.replay, wanted.steps)
    first, _, last = wanted.seeds.partition(":")
    return play_all(range(int(first), int(last)), wanted.jobs, Console())


if __name__ == "__main__":
    sys.exit(main())
