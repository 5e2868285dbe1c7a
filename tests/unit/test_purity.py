"""The core and the schemas take values and return values: no I/O, no clock, no await."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

OURS = ("schemas", "worker")

ALLOWED = {
    "__future__",
    "base64",
    "binascii",
    "collections",
    "functools",
    "datetime",
    "enum",
    "hashlib",
    "itertools",
    "json",
    "math",
    "msgspec",
    "operator",
    "re",
    "struct",
    "types",
    "typing",
}
"""What the core may import, itself and by way of its own modules. None of them does I/O."""

FORBIDDEN_CALLS = {"open", "input", "print", "exec", "eval", "__import__", "breakpoint"}
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}


def path_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def tree_of(module: str) -> ast.Module:
    path = path_of(module)
    assert path is not None, module
    return ast.parse(path.read_bytes(), str(path))


def pure_modules() -> list[str]:
    names = []
    for folder in ("schemas", "worker/core", "worker/status"):
        for path in sorted((ROOT / folder).glob("**/*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts).removesuffix(".__init__"))
    return [*names, "worker.cli.locations"]


def imports(module: str) -> Iterator[str]:
    """Everything that importing a module imports, its packages' __init__ included."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count])
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield node.module
            if node.module.split(".")[0] in OURS:
                inner = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name for name in inner if path_of(name) is not None)


def reachable(module: str) -> dict[str, str]:
    """Each module that is imported, ours and others, with the one of ours that does so."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        importer = waiting.pop()
        for name in imports(importer):
            if name not in found:
                found[name] = importer
                if name.split(".")[0] in OURS:
                    waiting.append(name)
    return found


MODULES = pure_modules()


def test_there_is_something_to_look_at() -> None:
    assert {"schemas.registry", "worker.core.task", "worker.core.decode"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_nothing_that_does_io(module: str) -> None:
    others = {
        name: importer
        for name, importer in reachable(module).items()
        if name.split(".")[0] not in {*OURS, *ALLOWED}
    }
    assert not others


@pytest.mark.parametrize("module", MODULES)
def test_is_neither_async_nor_waits(module: str) -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not [node.lineno for node in ast.walk(tree_of(module)) if isinstance(node, kinds)]


@pytest.mark.parametrize("module", MODULES)
def test_opens_nothing_and_reads_no_clock(module: str) -> None:
    found = []
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Attribute) and node.attr in CLOCKS:
            found.append((node.lineno, node.attr))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "fromtimestamp"
        ):  # without a zone it would ask the machine for its own
            assert len(node.args) == 2, f"{module}:{node.lineno}"
    assert not found


@pytest.mark.parametrize("module", MODULES)
def test_has_no_global_that_changes(module: str) -> None:
    assert not [n.lineno for n in ast.walk(tree_of(module)) if isinstance(n, ast.Global)]


def test_the_search_would_find_an_import_at_the_end_of_a_chain() -> None:
    found = reachable("worker.engine.worker")
    assert "asyncio" in found
    assert found.keys() & set(sys.stdlib_module_names) - ALLOWED
