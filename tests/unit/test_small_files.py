"""Small files: regular ones, also behind links; nothing else is waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.files_kit import improper
from worker.small_files import LARGEST, read_small


def test_a_file_behind_links_is_read_whole(tmp_path: Path) -> None:
    """Kubernetes mounts secrets so."""
    (tmp_path / "file").write_bytes(b"x" * LARGEST)
    (tmp_path / "one").symlink_to("file")
    (tmp_path / "two").symlink_to("one")
    assert read_small(tmp_path / "two") == b"x" * LARGEST


def test_the_null_device_is_an_empty_file() -> None:
    assert read_small(Path(os.devnull)) == b""


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "large"])
def test_anything_else_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"regular file|larger than"):
        read_small(improper(tmp_path / "file", kind))
