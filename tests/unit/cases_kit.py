"""The corpus in tests/cases/records, written from the contract alone."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest

from tests.paths import ROOT

CASES = ROOT / "tests" / "cases" / "records"


def load() -> list[Any]:
    cases = []
    for path in sorted(CASES.glob("*.json")):
        cases += [
            pytest.param(case, id=f"{path.stem}: {case['name']}")
            for case in json.loads(path.read_bytes())
        ]
    return cases


def value_of(case: dict[str, Any]) -> bytes | None:
    if case.get("deletion"):
        return None
    if "text" in case:
        return str(case["text"]).encode()
    if "base64" in case:
        return b64decode(case["base64"])
    if "parts" in case:
        return b"".join(str(part).encode() * times for part, times in case["parts"])
    return json.dumps(case["record"], ensure_ascii=False, separators=(",", ":")).encode()


def key_of(case: dict[str, Any]) -> bytes | None:
    if case.get("key_base64") is not None:
        return b64decode(case["key_base64"])
    return None if case.get("key") is None else str(case["key"]).encode()
