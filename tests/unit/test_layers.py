"""Imports point one way: docs/architecture.md, "Which package may import which".

A package is a folder or a file right below `worker/`, or `schemas`. An import counts wherever it
stands: at the top of a file, in a function, or for type checkers alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.paths import ROOT

ARCHITECTURE = ROOT / "docs" / "architecture.md"
ROW = re.compile(r"^\| `([\w.]+)`[^|]* \| (.*) \|$", re.MULTILINE)

TOP: Final = "cli"
"""The top package may import everything below it, and nothing imports the top package."""

MAY_IMPORT: Final = {
    "schemas": "",
    "worker": "",
    "stream": "",
    "errors": "",
    "private": "errors",
    "small_files": "",
    "demo": "",
    "core": "schemas stream errors",
    "clock": "core",
    "waiting": "",
    "log": "core",
    "rules_page": "schemas core",
    "brokers": "stream errors small_files clock",
    "accepted": "schemas stream core",
    "index": "stream errors private small_files core log brokers accepted",
    "ops": "schemas worker stream errors core",
    "engine": "schemas stream errors core clock waiting brokers index ops",
    "exports": "schemas worker errors private",
    "pull": "errors private exports",
    "files": "schemas errors",
    "sink": "schemas stream errors private core clock waiting log brokers accepted ops exports",
    "desk": "schemas stream errors core clock waiting log brokers ops",
    "checking": "stream core index files",
    "status": "schemas stream core",
    "http": (
        "schemas worker stream errors small_files core clock waiting brokers ops exports files sink"
        " desk status"
    ),
    "message_schemas": "schemas core desk exports files sink",
    "asyncapi": "schemas worker stream core message_schemas",
}
"""What each package may import, from the bottom up: only packages that stand before it.

Names are without `worker.`; `worker` itself is its `__init__`, which holds the version.
"""

ODD: Final = {
    # The rule for accepted rows checks that a key lies in the right partition.
    ("accepted", "brokers"): {"worker.brokers.partitioner"},
    # The manifest of a finished export says which of its files to read. A package below both,
    # for the manifest alone, would be a new layer.
    ("files", "exports"): {"worker.exports.layout", "worker.exports.manifest"},
    # The stores of desk and sink are resumed and rebuilt by the same rules as the index.
    ("desk", "index"): {
        "worker.index.checksum",
        "worker.index.directory",
        "worker.index.freshness",
        "worker.index.resuming",
        "worker.index.tails",
    },
    ("sink", "index"): {
        "worker.index.freshness",
        "worker.index.resuming",
        "worker.index.tails",
    },
}
"""Edges that remain though they are no part of the design, with the modules that they lead to."""


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "schemas" or len(parts) == 1 else parts[1]


def may_import(package: str) -> set[str]:
    return set(MAY_IMPORT[package].split())


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def modules() -> dict[str, Path]:
    found = [path for folder in ("schemas", "worker") for path in (ROOT / folder).rglob("*.py")]
    return {module_of(path): path for path in sorted(found)}


MODULES = modules()
PACKAGES = {package_of(module) for module in MODULES}


def imported(module: str) -> Iterator[str]:
    """The modules of the project that a module imports."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            if node.module not in MODULES:
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def edges() -> dict[tuple[str, str], set[str]]:
    """Which package imports which other one, and the modules that it imports there."""
    found: dict[tuple[str, str], set[str]] = {}
    for module in MODULES:
        for name in imported(module):
            edge = package_of(module), package_of(name)
            if edge[0] != edge[1]:
                found.setdefault(edge, set()).add(name)
    return found


EDGES = edges()


def test_each_package_has_a_row() -> None:
    assert {*MAY_IMPORT, TOP} == PACKAGES


def test_imports_point_down() -> None:
    order = [*MAY_IMPORT, TOP]
    allowed = [(package, other) for package in MAY_IMPORT for other in may_import(package)]
    upwards = [edge for edge in [*allowed, *ODD] if order.index(edge[0]) <= order.index(edge[1])]
    assert not upwards


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_exactly_what_it_may(package: str) -> None:
    odd = {b for a, b in ODD if a == package}
    assert {b for a, b in EDGES if a == package} == may_import(package) | odd
    assert not odd & may_import(package), "an edge is either odd or not"


@pytest.mark.parametrize("edge", ODD, ids=" -> ".join)
def test_an_odd_edge_leads_to_nothing_else(edge: tuple[str, str]) -> None:
    assert EDGES[edge] == ODD[edge]


def test_only_the_command_line_reads_settings_and_connects() -> None:
    own = {"worker.cli.settings", "worker.cli.connect_broker", "worker.cli.connect_place"}
    assert own <= set(MODULES)
    assert not [edge for edge in EDGES if edge[1] == TOP]


def test_the_architecture_page_shows_the_same() -> None:
    section = ARCHITECTURE.read_text("utf-8").partition("### Which package may import which")[2]
    rows = ROW.findall(section.partition("\n## ")[0])
    shown = {
        package_of(package): {package_of(other) for other in re.findall("`([^`]+)`", others)}
        for package, others in rows
    }
    assert list(shown) == [*MAY_IMPORT, TOP]
    del shown[TOP]
    assert shown == {package: {b for a, b in EDGES if a == package} for package in MAY_IMPORT}


def test_an_import_would_be_noticed_wherever_it_stands() -> None:
    assert "worker.core.moments" in set(imported("worker.clock"))
    assert "worker" in set(imported("worker.exports.manifest"))
    assert package_of("worker.sink.store.rocks") == "sink"
    assert package_of("schemas.users") == "schemas"
    assert package_of("worker") == "worker"
