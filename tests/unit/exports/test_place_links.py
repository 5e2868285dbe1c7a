"""Symbolic links below an exports directory: none is followed, each is named and left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from tests.unit.place_kit import DATA, FIRST, ID, SECOND, die, never, published, staged, whole
from worker.errors import StateError, UsageError
from worker.exports.layout import MANIFEST
from worker.exports.places.bucket import BucketPlace
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.links import open_below
from worker.exports.places.place import GoneError
from worker.exports.places.staging import hidden_name
from worker.exports.verify import verify


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A finished export outside of the place, as a thief would like to have it exported."""
    published(DirectoryPlace(tmp_path / "elsewhere"), FIRST, "private")
    return tmp_path / "elsewhere" / FIRST


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "exports").mkdir()
    return tmp_path / "exports"


def content(directory: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def swept(place: DirectoryPlace) -> tuple[list[str], list[str]]:
    """What a sweep has removed, and the links that it has named."""
    with capture_logs() as logs:
        removed = place.sweep()
    return removed, [entry["path"] for entry in logs if entry["event"] == "export_link_ignored"]


def test_a_bucket_sweeps_no_directory_that_its_room_links_to(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs" / hidden_name("letters")
    theirs.mkdir(parents=True)
    (tmp_path / "staging").symlink_to(tmp_path / "theirs")
    place = BucketPlace(Mock(), tmp_path / "staging")
    with pytest.raises(StateError, match=r"staging is a symbolic link, which is never followed"):
        place.sweep()
    assert list(theirs.parent.iterdir()) == [theirs]
    assert list(theirs.iterdir()) == []


def test_a_link_that_is_called_like_an_export_is_none(
    root: Path, elsewhere: Path, tmp_path: Path
) -> None:
    before = content(elsewhere)
    link = root / FIRST
    link.symlink_to(elsewhere, target_is_directory=True)
    place = DirectoryPlace(root)
    assert place.find_or_finish(ID) is None
    assert not place.sealed(ID)
    assert list(place.finished()) == []
    with pytest.raises(GoneError, match=FIRST):
        place.fetch(FIRST, tmp_path)
    with pytest.raises(UsageError, match="a symbolic link is no export"):
        verify(link)
    place.remove(FIRST)
    assert swept(place) == ([], [str(link)])
    assert (link.is_symlink(), content(elsewhere)) == (True, before)
    assert published(place, SECOND) == SECOND, "it keeps nobody from making the export"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_under_the_final_name_is_not_replaced(
    root: Path, elsewhere: Path, dangling: bool
) -> None:
    (root / FIRST).symlink_to("nowhere" if dangling else elsewhere)
    with pytest.raises(StateError, match=f"{FIRST} exists already"):
        published(DirectoryPlace(root), FIRST)
    assert (root / FIRST).is_symlink()


def test_a_link_in_the_way_of_a_sealed_export_is_named(root: Path, elsewhere: Path) -> None:
    place = DirectoryPlace(root)
    attempt = staged(place, FIRST)
    place._seal(attempt, ID)
    (root / FIRST).symlink_to(elsewhere)
    with pytest.raises(StateError, match=f"{FIRST} is in the way of a finished export: move it"):
        place.find_or_finish(ID)
    (root / FIRST).unlink()
    assert place.find_or_finish(ID) is not None


def test_a_manifest_that_is_a_link_makes_no_export(root: Path, elsewhere: Path) -> None:
    (root / FIRST).mkdir()
    (root / FIRST / MANIFEST).symlink_to(elsewhere / MANIFEST)
    place = DirectoryPlace(root)
    assert list(place.finished()) == []
    assert place.find_or_finish(ID) is None
    assert swept(place) == ([], [str(root / FIRST / MANIFEST)])


@pytest.mark.parametrize("path", [f"{DATA}/users.csv", DATA])
def test_a_link_inside_an_export_is_neither_copied_nor_verified(
    root: Path, elsewhere: Path, tmp_path: Path, path: str
) -> None:
    place = DirectoryPlace(root)
    published(place, FIRST, "private")
    (root / FIRST / path).rename(tmp_path / "moved")
    (root / FIRST / path).symlink_to(elsewhere / path)
    (tmp_path / "copy").mkdir()
    with pytest.raises(StateError, match="a symbolic link is never followed"):
        place.fetch(FIRST, tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("users.csv"))
    problems = verify(root / FIRST).problems
    assert any(line.startswith(f"{DATA}/users.csv: is a symbolic link") for line in problems)
    if path != DATA:
        return
    before = content(elsewhere)
    place.remove(FIRST)
    assert (content(elsewhere), list(root.glob("[!.]*"))) == (before, [])


def test_a_link_beside_the_files_of_an_export_is_not_copied(
    root: Path, elsewhere: Path, tmp_path: Path
) -> None:
    place = DirectoryPlace(root)
    published(place, FIRST)
    (root / FIRST / "more").symlink_to(elsewhere)
    assert whole(place, FIRST, tmp_path / "copy") == "1"
    assert "more: is not in the manifest" in verify(root / FIRST).problems


def _leftover(root: Path, elsewhere: Path) -> Path:
    link = root / hidden_name(FIRST)
    link.symlink_to(elsewhere)
    return link


def _all_seals(root: Path, elsewhere: Path) -> Path:
    (elsewhere / ID).mkdir()
    (elsewhere / ID / SECOND).mkdir()
    link = root / ".seals"
    link.symlink_to(elsewhere)
    return link


def _one_seal(root: Path, elsewhere: Path) -> Path:
    (elsewhere / SECOND).mkdir()
    (root / ".seals").mkdir()
    link = root / ".seals" / ID
    link.symlink_to(elsewhere)
    return link


@pytest.mark.parametrize("make", [_leftover, _all_seals, _one_seal])
def test_a_sweep_touches_nothing_behind_a_link_and_names_it(
    root: Path, elsewhere: Path, make: Callable[[Path, Path], Path]
) -> None:
    link = make(root, elsewhere)
    before = sorted(elsewhere.rglob("*"))
    place = DirectoryPlace(root, lambda: elsewhere.stat().st_mtime + 1e9)
    assert swept(place) == ([], [str(link)])
    assert place.find_or_finish(ID) is None
    assert not place.sealed(ID)
    assert (link.is_symlink(), sorted(elsewhere.rglob("*"))) == (True, before)
    if make is not _leftover:
        with pytest.raises(StateError, match="is a symbolic link, which is never followed"):
            published(place, SECOND)
        assert sorted(elsewhere.rglob("*")) == before


def test_a_link_is_named_once_an_hour_however_many_sweeps_there_are(
    root: Path, elsewhere: Path
) -> None:
    now = 0.0
    place = DirectoryPlace(root, steady=lambda: now)
    link = _leftover(root, elsewhere)
    named = []
    for minutes in (0, 0, 1, 60, 61):  # at the start, as the leader, after a failure, hourly
        now = minutes * 60.0
        named += [minutes] if swept(place)[1] == [str(link)] else []
    assert named == [0, 60]
    link.unlink()
    assert swept(place)[1] == []
    link.symlink_to(elsewhere)
    assert swept(place)[1] == [str(link)], "it is another one"


def test_a_lock_that_is_a_link_is_not_opened(root: Path, tmp_path: Path) -> None:
    outer = root / hidden_name(FIRST)
    outer.mkdir()
    (outer / "lock").symlink_to(tmp_path / "made")
    assert DirectoryPlace(root).sweep() == []
    assert (outer.exists(), (tmp_path / "made").exists()) == (True, False)


def test_links_in_a_dead_attempt_go_without_what_they_lead_to(root: Path, elsewhere: Path) -> None:
    before = content(elsewhere)
    place = DirectoryPlace(root)
    attempt = staged(place, FIRST)
    (attempt.directory / "more").symlink_to(elsewhere)
    attempt.sync()
    die(attempt)
    assert place.sweep() == [attempt.outer.name]
    assert content(elsewhere) == before


def test_a_link_in_a_seal_is_not_moved_out_of_it(root: Path, elsewhere: Path) -> None:
    (root / ".seals" / ID).mkdir(parents=True)
    (root / ".seals" / ID / FIRST).symlink_to(elsewhere)
    assert DirectoryPlace(root).find_or_finish(ID) is None
    assert list(root.glob("[!.]*")) == []


def test_the_exports_directory_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    place = DirectoryPlace(tmp_path / "link")
    attempt = staged(place, FIRST)
    assert place.publish(attempt, never).name == FIRST
    attempt.discard()
    assert whole(place, FIRST, tmp_path / "copy") == "1"
    assert swept(place) == ([], [])


def test_what_is_no_file_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="is no file"):
            open_below(root, name)


def test_marks_are_left_in_no_directory_that_is_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place = DirectoryPlace(root)
    first, later = staged(place, FIRST), staged(place, f"20991122T103000Z_{ID[:-1]}9")
    place.publish(later, never)
    (root / ".ahead").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="symbolic link, which is never followed"):
        place.publish(first, never)
    assert list((tmp_path / "elsewhere").iterdir()) == []
