"""What `python -m build` makes installs and runs without the checkout.

The wheel is built from the sdist, so both are complete. The wheel goes into a new venv that holds
its declared dependencies and nothing else: links to those of the running venv, so that no registry
is asked. pip checks the versions that the wheel requires. Every module is imported, so a dependency
that is used and not declared fails. `buddy demo` then runs broker, worker, sink and all three
export formats from the installed files, so a data file that the program reads cannot be missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.acceptance.kit import Result
from tests.paths import ROOT
from worker import __version__

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

NAME = f"buddy_stream-{__version__}"
PACKAGES = ("schemas", "worker")
IMPORT_ALL = f"""
from importlib import import_module
from pkgutil import walk_packages
for name in {PACKAGES}:
    package = import_module(name)
    modules = [each.name for each in walk_packages(package.__path__, f"{{name}}.")]
    print(*(import_module(each).__file__ for each in [name, *modules]), sep="\\n")
"""
LEFTOVERS = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "buddy-*")


def run(*command: str | Path) -> str:
    """Standard output of a command that succeeds; it finds no checkout and no setting of ours."""
    hidden = ("BUDDY_", "PYTHON")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    name = " ".join(map(str, command))
    return Result(name, done.returncode, done.stdout, done.stderr).succeeded().out


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the sdist and the wheel."""
    directory = tmp_path_factory.mktemp("built")
    # A copy: what an earlier build left in the checkout must not get in.
    source = shutil.copytree(ROOT, directory / "source", ignore=LEFTOVERS)
    dist = directory / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source)
    return dist


def place_of_packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))


def declared(requirements: Iterable[str], extras: Iterable[str] = ()) -> Iterator[str]:
    """The names of these requirements and of all that they require on this platform."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement.name
            yield from declared(metadata.requires(requirement.name) or (), requirement.extras)


def link_dependencies(packages: Path) -> None:
    """Link every distribution that the program needs from the running venv."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for name in set(map(canonicalize_name, declared(project["dependencies"]))):
        distribution = metadata.distribution(name)
        files = distribution.files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))


def program() -> set[str]:
    """The modules of the program, as paths below the checkout."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def data() -> set[str]:
    """What the program reads at run time, and the marks of typed packages."""
    console = ROOT / "worker" / "http" / "console"
    files = [*console.joinpath("templates").iterdir(), *console.joinpath("static").iterdir()]
    marks = {f"{package}/py.typed" for package in PACKAGES}
    return {path.relative_to(ROOT).as_posix() for path in files} | marks


def test_built_files_hold_the_program_and_nothing_else(built: Path) -> None:
    assert {path.name for path in built.iterdir()} == {
        f"{NAME}.tar.gz",
        f"{NAME}-py3-none-any.whl",
    }
    with ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert names == program() | data()
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        parts = {Path(name).parts[1:2] for name in sdist.getnames()}
    assert ("tests",) not in parts


def test_wheel_runs_in_a_venv_of_its_own(built: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    packages = place_of_packages(environment)
    link_dependencies(packages)
    python = environment / "bin" / "python"
    wheel = built / f"{NAME}-py3-none-any.whl"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-index", wheel)

    places = run(python, "-c", IMPORT_ALL).splitlines()
    assert all(Path(place).is_relative_to(packages) for place in places)
    assert len(places) == len(program())
    buddy = environment / "bin" / "buddy"
    assert run(buddy, "--version") == f"buddy, version {__version__}\n"
    out = run(buddy, "demo", "--records", "200", "--directory", tmp_path / "demo")
    assert "Every verdict is the one that was expected" in out
