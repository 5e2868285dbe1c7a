"""Detects damage in an LMDB file; LMDB itself has no checksums.

* A file that was closed in order has a checksum in a file beside it (`checksum.seal`). The checksum
  finds any change.
* Otherwise a separate process walks through the trees, because a damaged file may kill the process
  that reads it. Users and addresses contain the same pairs, so a changed byte in either is found.
  The walk cannot find a changed id of a match.

This file is also the program of that process, so it imports nothing from this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lmdb

_ID: Final = 16
_PATIENCE: Final = 600.0
_LOOK_UP_EVERY: Final = 16
_TREES: Final = ("about", "users", "addresses", "matches", "positions", "topics")


def damage_of(file: Path, version: int) -> str | None:
    """The damage found in a file without a checksum, or None.

    The trees of a file of another version than `version` are not checked.
    """
    return _walk_apart(file.parent, version) if file.exists() else None


def _walk_apart(directory: Path, version: int) -> str | None:
    program = [sys.executable, "-P", __file__, str(directory), str(version)]
    try:
        walked = subprocess.run(
            program, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return "walking through it does not end"
    if walked.returncode < 0:
        return f"walking through it ended with signal {-walked.returncode}"
    if walked.returncode > 0:
        return walked.stdout.strip() or "walking through it failed"
    return None


def walk(directory: str, version: str) -> str | None:
    """The damage found by reading everything. May kill the process. Raises lmdb.Error."""
    with (
        lmdb.open(directory, readonly=True, lock=False, max_dbs=len(_TREES)) as env,
        env.begin() as txn,
    ):
        size = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        if size > (Path(directory) / "data.mdb").stat().st_size:
            return "it was cut short"
        with Path(os.devnull).open("wb") as nowhere:  # reads the free pages too
            env.copyfd(nowhere.fileno(), compact=True)
        sums = {}
        for name in _TREES:
            weigh = _WEIGHTS.get(name)
            total = entries = 0
            before = b""
            tree = env.open_db(name.encode(), txn, create=False)
            if {flag for flag, is_set in tree.flags().items() if is_set} != _FLAGS.get(name, set()):
                return f"{name} is a tree of another kind"
            with txn.cursor(tree) as cursor:
                if name == "about" and txn.get(b"version", db=tree) != version.encode():
                    return None
                for key, value in cursor:
                    if key < before:
                        return f"the keys of {name} are in disorder"
                    before = key
                    entries += 1
                    # Every leaf has more entries, so this follows the path to each leaf.
                    if entries % _LOOK_UP_EVERY == 0 and txn.get(key, db=tree) is None:
                        return f"an entry of {name} is not found by its key"
                    if weigh is not None:
                        if len(key) != _ID or len(value) != _ID:
                            return f"an entry of {name} has a wrong length"
                        total += weigh(key, value)
                if entries != txn.stat(tree)["entries"]:
                    return f"{name} has another number of entries than it says"
            sums[name] = total
    if sums["users"] != sums["addresses"]:
        return "users and addresses contradict each other"
    return None


_FLAGS: Final = {"addresses": {"dupsort"}}
_WEIGHTS: Final[dict[str, Callable[[bytes, bytes], int]]] = {
    "users": lambda id_, address: zlib.crc32(id_ + address),
    "addresses": lambda address, id_: zlib.crc32(id_ + address),
}


def _main() -> int:
    try:
        found = walk(*sys.argv[1:])
    except lmdb.Error as error:
        found = str(error)
    sys.stdout.write(found or "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(_main())
