"""Symbolic links in the place of a state directory's files: what they lead to is not changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.index.store_kit import filled
from worker.errors import StateError
from worker.index.directory import StateDirectory


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("owner.lock", StateDirectory.take),
        ("unflushed", lambda directory: directory.mark_damaged("a test")),
    ],
)
def test_a_link_is_named_and_not_written_through(
    directory: Path, tmp_path: Path, name: str, use: Callable[[StateDirectory], None]
) -> None:
    others = _linked(directory / name, tmp_path)
    with pytest.raises(StateError, match=rf"{name} is a symbolic link, .*: remove it"):
        use(StateDirectory(directory))
    assert others.read_text() == "theirs"


def test_a_link_in_the_place_of_a_new_checksum_is_replaced(directory: Path, tmp_path: Path) -> None:
    others = _linked(directory / "checksum.new", tmp_path)
    filled(directory, 3)
    assert others.read_text() == "theirs"
    assert not (directory / "checksum").is_symlink()


def _linked(path: Path, room: Path) -> Path:
    others = room / "others"
    others.write_text("theirs")
    path.parent.mkdir(parents=True)
    path.symlink_to(others)
    return others
