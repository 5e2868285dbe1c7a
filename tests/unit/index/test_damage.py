"""The index after bytes of its file were changed: found, rebuilt in one line, and no crash."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.index.store_kit import filled, reopened

pytestmark = pytest.mark.thorough


def test_any_changed_byte_of_a_file_that_was_closed_in_order_is_found(directory: Path) -> None:
    filled(directory, 300)
    whole = {p.name: p.read_bytes() for p in directory.iterdir()}
    length = int(whole["checksum"].split()[0])
    chance = random.Random(6)
    for _ in range(20):
        content = bytearray(whole["data.mdb"])
        place = chance.randrange(length)
        content[place] ^= 1 << chance.randrange(8)
        (directory / "data.mdb").write_bytes(content)
        (directory / "checksum").write_bytes(whole["checksum"])
        assert reopened(directory) == ["it is damaged (its checksum is another)"]


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "owner.lock", "checksum"])
def test_a_file_that_is_missing_cut_short_or_garbage_is_no_crash(
    directory: Path, name: str
) -> None:
    for spoil in (
        lambda path: path.unlink(),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(b"\xff" * 8_192),
    ):
        filled(directory, 300)
        spoil(directory / name)
        reasons = reopened(directory)
        assert len(reasons) <= 1
        shutil.rmtree(directory)


DAMAGER = """
import sys, random, shutil
from pathlib import Path
from worker.errors import StateLost
from tests.unit.index.store_kit import reopened
directory, whole = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
chance = random.Random(int(sys.argv[3]))
for _ in range(6):
    content = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 16])):
        # Any page that is in use, its head more often than not.
        page = chance.randrange(4 if chance.random() < 0.3 else len(whole) // 4096)
        content[page * 4096 + min(4095, int(chance.expovariate(0.01)))] = chance.randrange(256)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "data.mdb").write_bytes(content)
    try:
        reopened(directory)
    except StateLost:  # found at work: the next opening rebuilds it
        (reason,) = reopened(directory)
        assert reason.startswith("it was found to be damaged (")
    except AssertionError:  # what nothing can tell: see damage.py
        pass
"""


@pytest.mark.parametrize("seed", range(3))
def test_no_damage_ends_the_process_even_after_a_kill(directory: Path, seed: int) -> None:
    filled(directory, 300)
    length = int((directory / "checksum").read_bytes().split()[0])
    whole = directory.parent / "whole"
    whole.write_bytes((directory / "data.mdb").read_bytes()[:length])
    done = subprocess.run(
        [sys.executable, "-c", DAMAGER, str(directory), str(whole), str(seed)],
        capture_output=True,
        cwd=ROOT,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
