"""What is ours is for owner and group only, the directories above it too."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.private import make_private, tighten


@pytest.fixture(autouse=True)
def permissive() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_missing_directories_above_are_as_private(tmp_path: Path) -> None:
    make_private(tmp_path / "data" / "index")
    assert mode(tmp_path / "data") == mode(tmp_path / "data" / "index") == 0o750


def test_what_exists_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_private(tmp_path / "data")
    make_private(tmp_path / "data")
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize(("inside", "then"), [("index", 0o750), ("theirs", 0o755), (None, 0o755)])
def test_a_data_directory_that_an_earlier_release_left_open_is_closed(
    tmp_path: Path, inside: str | None, then: int
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    if inside is not None:
        (data / inside).mkdir()
    tighten(data)
    assert mode(data) == then


def test_a_data_directory_that_is_missing_is_nobodys_fault(tmp_path: Path) -> None:
    tighten(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()
