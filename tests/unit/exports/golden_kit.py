"""The rows of the golden export; see tests/golden/README.md."""

from __future__ import annotations

from schemas import ENTITIES
from tests.paths import ROOT

GOLDEN = ROOT / "tests" / "golden" / "export"

LENGTHS = (16_384, 16_383)


def full(text: str) -> str:
    for length in LENGTHS:
        text = text.replace(f"{{{length} × 😀}}", "😀" * length)
    return text


def short(text: str) -> str:
    for length in LENGTHS:
        text = text.replace("😀" * length, f"{{{length} × 😀}}")
    return text


def golden_rows() -> dict[str, list[bytes]]:
    rows = {name: (GOLDEN / "rows" / f"{name}.ndjson").read_text("utf-8") for name in ENTITIES}
    return {name: full(text).encode().split(b"\n")[:-1] for name, text in rows.items()}
