"""Rows → export → records: the same rows in every format."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given

from schemas import ENTITIES
from tests.unit.export_kit import FEWER, export_to, exports, same
from worker.exports.layout import FORMATS, Format
from worker.exports.verify import verify
from worker.files import expand


@pytest.mark.parametrize("kind", FORMATS)
@FEWER
@given(tables=exports)
def test_every_row_comes_back(kind: Format, tables: dict[str, list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = export_to(Path(folder), tables, kind, max_sheet_rows=4)
        checked = verify(directory)
        assert checked.ok, checked.problems
        read: dict[str, list[bytes]] = {name: [] for name in tables}
        for source in expand([directory], None):
            for record in source.read():
                assert not record.oversize
                read[record.entity].append(record.value)
    for name, rows in tables.items():
        assert len(read[name]) == len(rows)
        for before, after in zip(rows, read[name], strict=True):
            assert same(ENTITIES[name], before, after), (before, after)
            if kind == "json":
                assert after == before
