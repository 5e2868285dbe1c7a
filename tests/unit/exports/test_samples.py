"""The rows that the tests of exports draw are canonical."""

from __future__ import annotations

import msgspec
from hypothesis import given

from schemas import ENTITIES
from tests.unit.export_kit import FEWER, exports


@FEWER
@given(exports)
def test_the_samples_are_canonical(tables: dict[str, list[bytes]]) -> None:
    for name, rows in tables.items():
        for row in rows:
            msgspec.json.decode(row, type=ENTITIES[name].struct)
            assert b"\n" not in row
