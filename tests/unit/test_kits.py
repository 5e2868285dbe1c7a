"""No module imports a test module or a conftest: what several tests share stands in a kit."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.thorough

TESTS = ROOT / "tests"


def imported(source: str) -> Iterator[str]:
    """The modules that a source imports; a name that it imports from one may be a module too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def of_tests(source: str) -> list[str]:
    """The test modules, and modules of fixtures, that a source imports."""
    names = [name for name in imported(source) if name.startswith("tests.")]
    return [name for name in names if re.search(r"\.(test_|conftest\b)", name)]


def test_no_module_imports_a_test_module_or_a_conftest() -> None:
    found = {
        str(path.relative_to(TESTS)): of_tests(path.read_text("utf-8"))
        for path in sorted(TESTS.rglob("*.py"))
    }
    assert {"conftest.py", "unit/test_kits.py", "unit/core_kit.py"} <= found.keys()
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "line",
    [
        "from tests.unit.test_log import wait",
        "from tests.unit import kit, test_log",
        "import tests.unit.test_log",
        "from tests.unit import conftest",
    ],
)
def test_such_an_import_would_be_noticed(line: str) -> None:
    assert of_tests(f"def inner():\n    {line}\n")
