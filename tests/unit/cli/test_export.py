"""`buddy export --out`: what is looked at before it asks, and a copy that cannot be made."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from tests.unit.place_kit import FIRST, ID, SECOND, published, whole
from worker.cli.apart import check_out
from worker.cli.export_copy import copy, places_of, room_for
from worker.cli.main import run
from worker.cli.settings import Settings
from worker.errors import StateError
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.place import copy_out
from worker.sink.requests import Announcement

USAGE = 2
STATE = 6
OTHER = "550e8400-e29b-41d4-a716-446655440001"
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


@pytest.mark.parametrize(
    ("out", "name"),
    [
        ("exports", "exports"),
        ("exports/x", "exports"),
        ("exports/.seals/x", "exports"),
        ("link/x", "exports"),
        ("log/x", "broker"),
        ("log/members/x", "broker"),
        ("state/sink", "data/sink"),
        ("state/sink/rows/x", "data/sink"),
    ],
)
def test_no_copy_is_made_among_exports_log_or_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, name: str
) -> None:
    for directory in ("exports/.seals", "log/members", "state/sink/rows"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "exports")
    places = {"exports": "exports", "broker": "log", "data": "state"}
    options = [f"--{n}={tmp_path / p}" for n, p in places.items() if n != "broker"]
    options.append(f"--broker=embedded:{tmp_path / 'log'}")
    there = sorted(tmp_path.rglob("*"))
    setting, _, inner = name.partition("/")
    emptied = tmp_path / places[setting] / inner
    assert run([*options, "export", "--out", str(tmp_path / out)]) == USAGE
    assert capsys.readouterr().err == (
        f"buddy: {tmp_path / out} lies in {emptied}, a directory of `{setting}`: "
        "name one elsewhere with --out\n"
    )
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("broker", ["embedded:{}/log", "kafka://127.0.0.1:1"])
@pytest.mark.parametrize("exports", ["{}/exports", "s3://exports/x"])
def test_a_copy_may_lie_beside_them(tmp_path: Path, broker: str, exports: str) -> None:
    places = (f"{tmp_path}/state", broker.format(tmp_path), exports.format(tmp_path))
    for name in ("exports-of-mine", "log.copy", "state.copy", "state/users-csv"):
        check_out(tmp_path / name, *places)


@pytest.fixture
def place(tmp_path: Path) -> DirectoryPlace:
    """Where the sink has made the export."""
    made = DirectoryPlace(tmp_path / "exports")
    published(made, FIRST)
    return made


def announced(root: Path) -> Announcement:
    at = datetime(2025, 11, 22, tzinfo=UTC)
    where = f"{root}/{FIRST}"
    return Announcement(ID, "mine", "finished", at, directory=FIRST, location=where)


def copied(out: Path, answer: Announcement, own: Path) -> None:
    """As the command does it, with `own` as the place that the settings name."""
    with room_for(out) as room:
        copy(room, out, answer, places_of(answer, Settings(exports=str(own)), {}, 1.0))


def test_a_copy_comes_from_where_the_sink_says_and_appears_whole(
    place: DirectoryPlace, tmp_path: Path
) -> None:
    (tmp_path / ".out.copying").mkdir()  # a copy that was killed
    (tmp_path / ".out.copying" / "half").touch()
    copied(tmp_path / "out", announced(tmp_path / "exports"), tmp_path / "elsewhere")
    assert whole(place, FIRST, tmp_path / "again") == "1"
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert {p.name for p in tmp_path.iterdir()} == {"exports", "again", "out"}


def test_a_sink_that_sees_its_place_otherwise_is_followed_by_the_settings(
    place: DirectoryPlace, tmp_path: Path
) -> None:
    copied(tmp_path / "out", announced(Path("/srv/nowhere")), tmp_path / "exports")
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "answer",
    [
        {"directory": None},
        {"location": None},
        {"directory": "../etc", "location": "/srv/../etc"},
        {"directory": SECOND.replace(ID, OTHER), "location": f"/srv/{SECOND.replace(ID, OTHER)}"},
        {"location": "/srv/somewhere"},
    ],
)
def test_an_announcement_that_names_no_place_is_one_line(
    tmp_path: Path, answer: dict[str, str | None]
) -> None:
    said = msgspec.structs.replace(announced(tmp_path), **answer)
    with pytest.raises(StateError, match=r"announced no place .* repeat with --id mine"):
        copied(tmp_path / "out", said, tmp_path)
    assert list(tmp_path.iterdir()) == []


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

        monkeypatch.setattr("worker.exports.places.directory.copy_out", removed)
    with pytest.raises(StateError) as raised:
        copied(tmp_path / "out", announced(tmp_path / "exports"), tmp_path / "own")
    said = str(raised.value)
    assert ("has been removed meanwhile" in said) == (when == "meanwhile")
    assert (
        "name its place as it is seen from here with --exports, and repeat with --id mine" in said
    )
    assert said.endswith("(keep_exports, keep_days) stays removed")
    assert "finished" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["exports"]


def test_a_copy_that_is_damaged_says_where_the_export_is_and_asks_for_no_other(
    place: DirectoryPlace, tmp_path: Path
) -> None:
    (tmp_path / "exports" / FIRST / "buddy_export_2025-11-22.json").write_text("[]")
    with pytest.raises(StateError) as raised:
        copied(tmp_path / "out", announced(tmp_path / "exports"), tmp_path / "own")
    there = tmp_path / "exports" / FIRST
    assert str(raised.value).endswith(
        f"is damaged; the export itself is finished, in {there}: "
        "repeat with --id mine to copy it, which makes no other export"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["exports"]


def test_what_cannot_be_made_is_told_before_anybody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("x" * 250)  # with what is put around it, more than a name can have
    assert run(["--broker", NOBODY, "export", "--out", str(out)]) == STATE
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def half_a_copy(out: Path, number: signal.Signals) -> None:
    with room_for(out) as room:
        (room / "half").touch()
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_of_a_copy(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            half_a_copy(tmp_path / "out", number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with room_for(tmp_path / "out") as room:
            signal.raise_signal(signal.SIGHUP)
            assert room.is_dir()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
