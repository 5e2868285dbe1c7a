"""A directory as the place of exports: seals, two sinks at once, kills, removal, leftovers."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.place_kit import (
    DATA,
    FIRST,
    ID,
    SECOND,
    KilledError,
    die,
    never,
    published,
    staged,
    whole,
)
from worker.errors import StateError
from worker.exports.layout import MANIFEST
from worker.exports.order import AHEAD
from worker.exports.places import directory as place_directory
from worker.exports.places import staging
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.hangs import HANG_SECONDS, Calls
from worker.exports.places.place import SEAL_DAYS
from worker.exports.places.staging import Staging, sweep


def shown(root: Path) -> dict[str, list[str]]:
    """What anybody sees: each directory that is not hidden, with its files."""
    return {p.name: sorted(f.name for f in p.iterdir()) for p in sorted(root.glob("[!.]*"))}


OTHER = "550e8400-e29b-41d4-a716-446655440001"
WHOLE = [DATA, f"{DATA}.json", MANIFEST]


def test_an_export_is_found_under_its_id(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path / "exports")
    assert place.find_or_finish(ID) is None
    assert not place.sealed(ID)
    assert list(place.finished()) == []
    assert published(place, FIRST) == FIRST
    found = place.find_or_finish(ID)
    assert found is not None
    assert (found.name, found.location) == (FIRST, str(tmp_path / "exports" / FIRST))
    assert found.manifest.export_id == ID
    assert list(place.finished()) == [found]
    assert place.sealed(ID)
    assert shown(tmp_path / "exports") == {FIRST: WHOLE}
    for path in [tmp_path / "exports", *(tmp_path / "exports").rglob("*")]:
        assert path.is_file() or not path.stat().st_mode & 0o007


def test_attempts_within_the_same_second_do_not_mix(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    one, two = staged(place, FIRST, "one"), staged(place, FIRST, "two")
    assert place.publish(two, never).manifest.spec_version == "two"
    assert place.publish(one, never).manifest.spec_version == "two"
    one.discard()
    assert whole(place, FIRST, tmp_path / ".copy") == "two"


def test_a_zombie_that_thaws_just_before_its_seal_fails_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = DirectoryPlace(tmp_path)
    zombie = staged(place, FIRST, "zombie")
    seal = DirectoryPlace._seal

    def frozen(self: DirectoryPlace, attempt: Staging, export_id: str) -> None:
        monkeypatch.setattr(DirectoryPlace, "_seal", seal)
        published(DirectoryPlace(tmp_path), SECOND, "other")
        seal(self, attempt, export_id)

    monkeypatch.setattr(DirectoryPlace, "_seal", frozen)
    assert place.publish(zombie, never).manifest.spec_version == "other"
    zombie.discard()
    assert shown(tmp_path) == {SECOND: WHOLE}


def _calls() -> list[tuple[Any, str]]:
    """Everything by which `publish` changes the disk."""
    return [(Path, "rename"), (Path, "mkdir"), (place_directory, "sync_directory"),
            (staging, "sync_directory")]  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_any_step_leaves_all_or_nothing_and_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    place = DirectoryPlace(tmp_path)
    attempt = staged(place, FIRST, "killed")
    done: list[str] = []

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if len(done) == step and not after:
                raise KilledError
            result = real(*args, **more)
            done.append(real.__name__)
            if len(done) == step + 1 and after:
                raise KilledError
            return result

        return call

    with monkeypatch.context() as patch:
        for where, name in _calls():
            patch.setattr(where, name, killing(getattr(where, name)))
        try:
            place.publish(attempt, never)
        except KilledError:
            die(attempt)
        else:
            assert step >= len(done) == 9, "beyond the last step"
    assert shown(tmp_path) in ({}, {FIRST: WHOLE}), "never half of it"
    sealed = place.sealed(ID)
    other = DirectoryPlace(tmp_path)
    assert published(other, SECOND, "other") == (FIRST if sealed else SECOND)
    assert len(shown(tmp_path)) == 1
    other.sweep()
    assert list(tmp_path.glob(".*.partial")) == []


def test_what_is_sealed_is_finished_by_a_sweep_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = DirectoryPlace(tmp_path)
    attempt = staged(place, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(DirectoryPlace, "find_or_finish", lambda *_: None)
        with pytest.raises(StateError, match="is gone or damaged"):
            place.publish(attempt, never)
    assert shown(tmp_path) == {}
    assert DirectoryPlace(tmp_path).sweep() == []
    assert shown(tmp_path) == {FIRST: WHOLE}


def test_an_export_that_is_given_up_is_not_sealed(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    attempt = staged(place, FIRST)
    with pytest.raises(StateError, match="given up"):
        place.publish(attempt, lambda: True)
    attempt.discard()
    assert not place.sealed(ID)
    assert list(tmp_path.iterdir()) == []


def test_something_else_of_that_name_is_not_overwritten(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    (tmp_path / FIRST).mkdir()
    (tmp_path / FIRST / "mine").touch()
    with pytest.raises(StateError, match="not overwritten"):
        published(place, FIRST)
    assert shown(tmp_path) == {FIRST: ["mine"]}
    assert published(place, SECOND) == SECOND


def test_what_is_no_export_does_not_come(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    published(place, FIRST)
    for name in ("notes", "20251122T140000Z_empty", ".20251122T150000Z_x.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "20251122T160000Z_file").touch()
    (tmp_path / f"20251122T170000Z_{ID}").mkdir()
    (tmp_path / f"20251122T170000Z_{ID}" / MANIFEST).write_text("{}")
    assert [f.name for f in place.finished()] == [FIRST]
    found = place.find_or_finish(ID)
    assert found is not None
    assert found.name == FIRST


def test_exports_of_before_there_were_seals_count(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    published(place, FIRST)
    for path in sorted((tmp_path / ".seals").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert place.sealed(ID)
    assert published(place, SECOND) == FIRST


def test_a_kill_while_removing_is_swept_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = DirectoryPlace(tmp_path)
    published(place, FIRST)

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("worker.exports.places.directory.shutil.rmtree", killed)
        with pytest.raises(KilledError):
            place.remove(FIRST)
    assert shown(tmp_path) == {}
    assert len(place.sweep()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [".seals"]


def test_seals_go_when_their_requests_cannot_come_again(tmp_path: Path) -> None:
    now = (tmp_path.stat().st_mtime) + 10
    place = DirectoryPlace(tmp_path, lambda: now)
    published(place, FIRST)
    published(place, f"20261222T103000Z_{OTHER}")

    def pass_days(days: int) -> None:
        nonlocal now
        now += days * 24 * 3600
        os.utime(tmp_path / ".seals" / OTHER, (now, now))
        place.sweep()

    pass_days(SEAL_DAYS + 1)
    assert (tmp_path / ".seals" / ID).exists(), "its export is there"
    place.remove(FIRST)
    pass_days(-2)
    assert place.sealed(ID)
    pass_days(2)
    assert not place.sealed(ID)


def test_a_clock_that_is_wrong_for_a_moment_forgets_no_seal(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path, lambda: 1e12)
    published(place, FIRST)
    place.remove(FIRST)
    place.sweep()
    assert place.sealed(ID)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "exports").touch()
    place = DirectoryPlace(tmp_path / "exports")
    assert place.find_or_finish(ID) is None
    assert place.sweep() == []
    with pytest.raises(StateError, match="Not a directory"):
        place.remove(FIRST)
    with pytest.raises(StateError, match="Not a directory"):
        place.probe()


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    DirectoryPlace(tmp_path / "exports").probe()
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize("look", [DirectoryPlace.probe, DirectoryPlace.check])
def test_a_look_finds_what_an_export_would_fail_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Callable[[DirectoryPlace], None]
) -> None:
    place = DirectoryPlace(tmp_path)
    (tmp_path / ".seals").mkdir()
    look(place)
    assert [path.name for path in tmp_path.rglob("*")] == [".seals"]

    def dead(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", dead)
    with pytest.raises(StateError, match="Input/output error"):
        look(place)
    monkeypatch.undo()
    make = Path.mkdir

    def refused(self: Path, *args: Any, **more: Any) -> None:
        if self.parent.name == ".seals":
            raise PermissionError(errno.EACCES, "Permission denied")
        make(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(StateError, match=r"\.seals cannot be written \(Permission denied\): let "):
        look(place)
    assert [path.name for path in tmp_path.rglob("*")] == [".seals"]


@pytest.mark.parametrize("own", [".seals", ".ahead"])
@pytest.mark.parametrize("kind", ["file", "pipe", "link"])
def test_what_stands_in_the_way_of_a_directory_of_its_own_is_named(
    tmp_path: Path, own: str, kind: str
) -> None:
    place = DirectoryPlace(tmp_path / "exports")
    published(place, FIRST)
    path = tmp_path / "exports" / own
    if path.exists():
        path.rename(tmp_path / "away")
    if kind == "link":
        path.symlink_to(tmp_path)
        says = f"{path} is a symbolic link, which is never followed: remove it"
    else:
        path.touch() if kind == "file" else os.mkfifo(path)
        says = f"{path} is no directory: move it away"
    later, calls = staged(place, SECOND), [place.probe, place.check]
    calls.append(lambda: place._seal(later, ID) if own == ".seals" else place._mark([FIRST], "x"))
    for call in calls:
        with pytest.raises(StateError, match=re.escape(says)):
            call()
    later.discard()
    path.unlink()
    place.probe()
    place.check()


def test_a_directory_of_seals_without_rights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = DirectoryPlace(tmp_path)
    published(place, FIRST)
    says = r"/\.seals cannot be written \(Permission denied\): let the sink's user write to it"
    later = staged(place, SECOND)

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(StateError, match=says):
        place._seal(later, ID)
    later.discard()


def test_below_a_volume_that_was_unmounted_nothing_is_done(tmp_path: Path) -> None:
    root, volume = tmp_path / "exports", tmp_path / "volume"
    place = DirectoryPlace(root)
    published(place, FIRST)
    root.rename(volume)
    for below in (False, True):
        if below:
            root.mkdir()
        for call in (
            place.probe,
            place.sweep,
            lambda: place.find_or_finish(ID),
            lambda: place.sealed(ID),
        ):
            with pytest.raises(StateError, match="was replaced or unmounted while in use"):
                call()
    with pytest.raises(StateError, match="was replaced or unmounted while in use"):
        published(place, SECOND)
    assert list(root.iterdir()) == []
    root.rmdir()
    volume.rename(root)
    place.probe()
    assert place.find_or_finish(ID) is not None


def test_a_call_that_hangs_is_told_until_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    place = DirectoryPlace(tmp_path, steady=lambda: now)
    said: list[str | None] = []

    def hang(_: int) -> None:
        nonlocal now
        said.append(place.hang())
        now += HANG_SECONDS
        said.append(place.hang())

    monkeypatch.setattr(os, "fsync", hang)
    place.probe()
    assert said == [None, f"the disk of {tmp_path} has not answered for 20 s"]
    assert place.hang() is None


def test_a_disk_without_room_for_an_export_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = DirectoryPlace(tmp_path)
    place.check()
    disk = {"f_bavail": 4_096, "f_frsize": 4_096, "f_files": 9_999, "f_favail": 999, "f_flag": 0}
    for full in ({"f_bavail": 100}, {"f_favail": 3}):
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, full=full: SimpleNamespace(**{**disk, **full}))
            with pytest.raises(StateError, match="No space left on device"):
                place.check()
    with monkeypatch.context() as patch:  # a file system that counts no files
        counts = {**disk, "f_files": 0, "f_favail": 0}
        patch.setattr(os, "statvfs", lambda _: SimpleNamespace(**counts))
        place.check()
    assert list(tmp_path.iterdir()) == []
    tmp_path.rmdir()
    with pytest.raises(StateError, match="was replaced or unmounted while in use"):
        place.check()


# --- Staging --------------------------------------------------------------------------------------


def opened(root: Path, name: str) -> Staging:
    attempt = Staging(root, name, Calls(root))
    attempt.open()
    return attempt


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_sweep_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    alive = opened(tmp_path, "alive")
    dead = opened(tmp_path, "dead")
    (dead.directory / "half").touch()
    die(dead)
    unlocked = tmp_path / ".early.00000000.partial"
    unlocked.mkdir()
    (tmp_path / ".other").mkdir()
    (tmp_path / "finished").mkdir()
    assert sweep(tmp_path) == sorted([dead.directory.parent, unlocked])
    assert alive.directory.is_dir()
    alive.discard()
    assert names_in(tmp_path) == [".other", "finished"]
    assert sweep(tmp_path / "missing") == []


def test_a_writer_whose_directory_was_swept_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    swept: list[list[Path]] = []

    def sweep_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr("worker.exports.places.staging.fcntl.flock", flock)
        swept.append(sweep(tmp_path))
        flock(descriptor, operation)

    monkeypatch.setattr("worker.exports.places.staging.fcntl.flock", sweep_first)
    attempt = opened(tmp_path, "x")
    assert len(swept[0]) == 1
    assert attempt.directory.is_dir()
    attempt.discard()
    assert names_in(tmp_path) == []


def test_the_mark_of_an_export_goes_with_it(tmp_path: Path) -> None:
    place = DirectoryPlace(tmp_path)
    ahead = f"20991122T103000Z_{ID[:-1]}9"
    published(place, ahead)
    published(place, FIRST)
    (mark,) = (tmp_path / AHEAD).iterdir()
    assert mark.name == f"{FIRST[:16]}_{ahead}"
    place.sweep()
    assert mark.exists()
    place.remove(ahead)
    place.sweep()
    assert not mark.exists()
