"""`python -m tests.proofs.kill_desk`: exit code 0 if nothing was wrong, 1 if something was."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.proofs.kill_desk.run import Options, run


def main() -> int:
    """Read the options, run, print what was found."""
    prog = "python -m tests.proofs.kill_desk"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    usual = Options()
    parser.add_argument("--rejections", type=int, default=usual.rejections)
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="kills of each command")
    parser.add_argument("--seed", type=int, default=usual.seed, help="of the moments")
    options = Options(**vars(parser.parse_args()))
    try:
        found = asyncio.run(run(options, _say))
    except KeyboardInterrupt:
        return 130
    for line in found.faults:
        _say(f"FAULT {line}")
    _say("faults found" if found.faults else "every rejection counted, and sent again, once")
    return 1 if found.faults else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
