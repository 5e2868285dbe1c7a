"""The store after kill -9: rows and positions agree, and reading on from there loses nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.rows_kit import NAMES, message, user
from worker.sink.store.row_store import RowStore
from worker.stream import Message, Partition

pytestmark = pytest.mark.thorough

KEYS = 40
BATCH = 25
USERS = Partition(NAMES.accepted("users"), 0)


def sent(offset: int) -> Message:
    """The message at an offset of an endless log in which every row is updated and deleted."""
    key, value = user(offset * 7 % KEYS, first_name=f"v{offset}", location="x" * 300)
    return message("users", offset, key, None if offset % 11 == 0 else value)


def rows_before(end: int) -> list[bytes]:
    latest = {m.key: m.value for m in map(sent, range(end))}
    return [value for _, value in sorted(latest.items(), key=lambda i: i[0] or b"") if value]


def apply_for_ever(directory: str) -> None:
    store = RowStore(Path(directory), NAMES)
    offset = store.positions().get(USERS, 0)
    while True:
        store.apply([sent(n) for n in range(offset, offset + BATCH)], {})
        offset += BATCH
        os.write(1, b"%d\n" % offset)


@pytest.mark.acceptance
def test_rows_and_positions_agree_after_kill_9(tmp_path: Path) -> None:
    chance = random.Random(20251122)
    reached = 0
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import *; apply_for_ever({str(tmp_path)!r})"],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            for _ in range(chance.randint(3, 60)):
                reached = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        store = RowStore(tmp_path, NAMES)
        try:
            assert store.rebuilt is None
            end = store.positions()[USERS]
            assert end >= reached, "what was applied survives"
            assert end % BATCH == 0, "no batch is half there"
            snapshot = store.snapshot()
            found = [row for block in snapshot.blocks("users") for row in block]
            assert found == rows_before(end)
            assert store.counts()["users"] == len(found)
        finally:
            store.close()


_NO_MORE_THREADS = """
import os, resource, sys
from pathlib import Path
from worker.sink.store import rocks
directory = Path(sys.argv[1])
(directory / "rows").mkdir()
db = rocks.open_database(directory / "rows")
for number in range(3):
    db[b"key"] = b"%d" % number
    db.flush()
for path in (directory, *directory.rglob("*")):
    os.chown(path, 65534, 65534)
if os.geteuid() == 0:
    os.setuid(65534)  # the limit holds for everybody but root
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
frozen = rocks.freeze(db, directory / "snapshot")
print(frozen[b"key"].decode())
"""


def test_a_snapshot_is_opened_where_no_thread_can_be_started() -> None:
    """RocksDB would abort the process, in the middle of its life."""
    with tempfile.TemporaryDirectory() as directory:  # the user nobody may not enter pytest's
        done = subprocess.run(
            [sys.executable, "-c", _NO_MORE_THREADS, directory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
