"""The console script `buddy`, and `python -m worker.cli`.

Importing the command line takes a tenth of a second. An interrupt in it ends as quietly as later.
"""

from __future__ import annotations

import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command that `sys.argv` names, and exit with its code."""
    try:
        from worker.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("buddy: interrupted\n")
        sys.exit(_INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
