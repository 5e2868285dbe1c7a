"""`python -m tests.proofs.fuzz_http [--seconds 600] [--seed 1]`: no request gets a 5xx."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.proofs.fuzz_http.run import Api, fuzz


def main() -> int:
    """Exit code 1 if a request got a 5xx, or an answer that the description does not have."""
    parser = argparse.ArgumentParser(prog="tests.proofs.fuzz_http")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="buddy-fuzz-") as directory,
        Api(Path(directory)) as api,
    ):
        failed = fuzz(api, wanted.seconds, wanted.seed, examples=100)
    print(failed or "clean")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
