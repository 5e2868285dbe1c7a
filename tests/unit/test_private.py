"""What is ours is for owner and group only, the directories above it too."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.cli.main import run
from worker.errors import StateError
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


@pytest.mark.parametrize("target", ["nowhere", "data"])
@pytest.mark.parametrize("below", ["", "index", "sink/rows"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, target: str, below: str) -> None:
    link = tmp_path / "data"
    link.symlink_to(target)
    with pytest.raises(StateError) as raised:
        make_private(link / below)
    assert str(raised.value) == (
        f"{link} is a symbolic link that leads nowhere ({target}): make the directory that it "
        "names, or remove the link"
    )
    assert list(tmp_path.iterdir()) == [link]
    if target == "nowhere":
        (tmp_path / target).mkdir()
        make_private(link / below)
        assert (tmp_path / target / below).is_dir()


@pytest.mark.parametrize("setting", ["data", "broker", "parent of broker"])
def test_a_service_names_the_link_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    below = {"broker": link, "parent of broker": link / "log"}
    options = [f"--broker=embedded:{below.get(setting, tmp_path / 'log')}", "--log-level=error"]
    options.append(f"--data={link if setting == 'data' else tmp_path / 'data'}")
    assert run([*options, "run"]) == 6
    said = capsys.readouterr().err
    assert said.startswith(f"buddy: {link} is a symbolic link that leads nowhere (nowhere): make ")
    assert said.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


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
