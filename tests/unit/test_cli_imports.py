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


@pytest.mark.parametrize("module", ["worker.cli.status", "worker.settings"])
def test_what_is_slow_to_import_is_imported_where_it_is_needed(module: str) -> None:
    found = imported(f"import {module}")
    assert module in found
    assert not {name.split(".")[0] for name in found} & SLOW


def test_the_list_of_commands_imports_none_of_them() -> None:
    found = imported("from worker.cli.main import run; run(['--help'])")
    assert {name for name in found if name.startswith("worker.cli.")} == {
        "worker.cli.console",
        "worker.cli.main",
    }
