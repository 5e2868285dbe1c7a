"""`python -m tests.proofs.kill_exports`: exit code 0 if nothing was wrong, 1 if something was."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.proofs.kill_exports.run import Options, run


def main() -> int:
    """Read the options, run, print what was found."""
    prog = "python -m tests.proofs.kill_exports"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    usual = Options()
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="kills, and some more")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of stages and moments")
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, help="begin no round after so long"
    )
    parser.add_argument("--rows", type=int, default=usual.rows, help="in each export")
    options = Options(**vars(parser.parse_args()))
    try:
        found = asyncio.run(run(options, _say))
    except KeyboardInterrupt:
        return 130
    for line in found.lines():
        _say(line)
    return 1 if found.faults else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
