"""`buddy export --out`: what is looked at before it asks, and a copy that cannot be made."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.place_kit import FIRST, ID, published, whole
from worker.cli import export
from worker.cli.main import run
from worker.errors import StateError
from worker.exports.place import copy_out
from worker.exports.place_directory import DirectoryPlace
from worker.sink.requests import Announcement

USAGE = 2
NOBODY = "kafka://127.0.0.1:1"
"""Asking there would take its time, and fail otherwise."""


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_what_exists_is_a_usage_error_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "directory":
        out.mkdir()
    elif kind == "file":
        out.touch()
    else:
        out.symlink_to("nowhere")
    assert run(["--broker", NOBODY, "export", "--out", str(out)]) == USAGE
    assert capsys.readouterr().err == f"buddy: {out} exists: name a directory that does not\n"


def test_a_directory_that_is_missing_is_one_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "missing" / "out"
    assert run(["--broker", NOBODY, "export", "--out", str(out)]) == USAGE
    assert "missing is no directory: make it" in capsys.readouterr().err


@pytest.fixture
def place(tmp_path: Path) -> DirectoryPlace:
    made = DirectoryPlace(tmp_path / "exports")
    published(made, FIRST)
    return made


def announced() -> Announcement:
    at = datetime(2025, 11, 22, tzinfo=UTC)
    return Announcement(ID, "r", "finished", at, directory=FIRST, location=f"/exports/{FIRST}")


def test_a_copy_appears_whole_in_one_step(place: DirectoryPlace, tmp_path: Path) -> None:
    (tmp_path / ".out.copying").mkdir()  # a copy that was killed
    (tmp_path / ".out.copying" / "half").touch()
    export._copy(place, announced(), tmp_path / "out")
    assert whole(place, FIRST, tmp_path / "again") == "1"
    assert {p.name for p in tmp_path.iterdir()} == {"exports", "again", "out"}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_an_export_that_is_gone_is_not_called_finished(
    place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    if when == "before":
        place.remove(FIRST)
    else:

        def removed(content: bytes, where: str, *rest: object) -> None:
            place.remove(FIRST)
            copy_out(content, where, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr("worker.exports.place_directory.copy_out", removed)
    with pytest.raises(StateError) as raised:
        export._copy(place, announced(), tmp_path / "out")
    said = str(raised.value)
    assert ("has been removed meanwhile" in said) == (when == "meanwhile")
    assert said.endswith("(keep_exports, keep_days), ask again under another --id")
    assert "finished" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["exports"]


def test_a_copy_that_is_damaged_says_where_the_export_is(
    place: DirectoryPlace, tmp_path: Path
) -> None:
    (tmp_path / "exports" / FIRST / "buddy_export_2025-11-22.json").write_text("[]")
    with pytest.raises(StateError, match=f"is damaged; the export itself .* in /exports/{FIRST}"):
        export._copy(place, announced(), tmp_path / "out")
