"""What a command imports before it does anything: machines run `status` every few seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"aiokafka", "boto3", "lmdb", "openpyxl", "prometheus_client", "rich", "rocksdict"}


def imported(code: str) -> set[str]:
    listing = f"{code}\nimport sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, check=True)
    return set(done.stdout.decode().splitlines()[-1].split())


@pytest.mark.parametrize("module", ["worker.cli.status", "worker.cli.settings"])
def test_what_is_slow_to_import_is_imported_where_it_is_needed(module: str) -> None:
    found = imported(f"import {module}")
    assert module in found
    assert not {name.split(".")[0] for name in found} & SLOW


@pytest.mark.parametrize("argument", ["--help", "--version", "nosuch"])
def test_the_list_of_commands_imports_none_of_them(argument: str) -> None:
    """That it comes at once is held by what it imports: a time would depend on the machine."""
    found = imported(f"from worker.cli.main import run; run([{argument!r}])")
    assert {name for name in found if name.startswith(("worker", "schemas"))} == {
        "worker",
        "worker.cli",
        "worker.cli.console",
        "worker.cli.main",
        "worker.cli.streams",
        "worker.errors",
        "worker.core",
        "worker.core.shown",
    }
    others = {name.split(".")[0] for name in found} - sys.stdlib_module_names
    assert {name for name in others if not name.startswith("_")} <= {"click", "worker"}
    assert not found & {"asyncio", "hashlib", "http", "logging", "ssl"}


@pytest.mark.parametrize("command", ["check", "send", "status", "rejections"])
def test_the_help_of_a_command_imports_no_server_and_no_log(command: str) -> None:
    found = imported(f"from worker.cli.main import run; run([{command!r}, '--help'])")
    assert not {name.split(".")[0] for name in found} & {*SLOW, "structlog"} - {"openpyxl"}
