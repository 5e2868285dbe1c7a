"""Thousands of random rows of hostile text through a sink, and back through four foreign readers.

Records are decoded as a worker does and accepted; a sink reads them and makes one export in all
formats. The csv module, json, openpyxl and calamine then read every cell of all rows. Each cell
must be what docs/contract.md makes of the accepted row.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from schemas import ENTITIES
from tests.exports import expected, hostile, reading
from tests.exports.expected import Rows
from tests.exports.spec import TABLES
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.decode import Decoded, RecordDecoder, latest_moment
from worker.core.topics import Names, wanted
from worker.exports.places.directory import DirectoryPlace
from worker.sink.export_settings import ExportSettings
from worker.sink.requests import ExportRequest, decode_announcement, encode_request
from worker.sink.service import serve
from worker.stream import Partition, ProducerRecord

ROWS = int(os.environ.get("BUDDY_READERS_ROWS", "30000"))
SEED = 5
SECONDS = 120.0
"""For the export; it takes some ten."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Made(NamedTuple):
    """The export, and the rows that it must hold."""

    directory: Path
    rows: Rows
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("readers")
    accepted = accept(hostile.Records(SEED), ROWS)
    directory = asyncio.run(export(folder, accepted))
    rows = expected.rows_of({entity: some.values() for entity, some in accepted.items()})
    return Made(directory, rows, json.loads((directory / "manifest.json").read_bytes()))


def accept(records: hostile.Records, count: int) -> dict[str, dict[bytes, bytes]]:
    """Key and canonical row of each record, as the worker judges it: all must be fine."""
    decoders = {name: RecordDecoder(entity) for name, entity in ENTITIES.items()}
    latest = latest_moment(time.time_ns() // 1_000_000, 60)
    accepted: dict[str, dict[bytes, bytes]] = {name: {} for name in ENTITIES}
    for entity, record in records.make(count):
        outcome = decoders[entity].decode(hostile.encoded(record), None, latest)
        assert isinstance(outcome, Decoded), (entity, record, outcome)
        # Canonical, yet what was sent: no cell can be lost before the export.
        row = json.loads(outcome.row)
        assert row == record
        assert list(row) == [name for name in TABLES[entity].columns if name in record]
        accepted[entity][outcome.key] = outcome.row
    assert sum(map(len, accepted.values())) == count
    return accepted


async def export(folder: Path, accepted: Mapping[str, Mapping[bytes, bytes]]) -> Path:
    """The directory of an export of these rows by a sink."""
    names = Names("buddy")
    broker = EmbeddedBroker(folder / "broker")
    await broker.open()
    try:
        await broker.create(wanted(names, 2, 1024 * 1024).values())
        for entity, rows in accepted.items():
            messages = (
                ProducerRecord(names.accepted(entity), key, row) for key, row in rows.items()
            )
            while batch := list(islice(messages, 2_000)):
                await broker.publish(batch)
        key, value = encode_request(ExportRequest("readers"))
        await broker.publish([ProducerRecord(names.export_requests, key, value)])
        stop = asyncio.Event()
        settings = ExportSettings(DirectoryPlace(folder / "exports"))
        sink = asyncio.create_task(serve(broker, "buddy", folder / "store", settings, stop))
        try:
            return folder / "exports" / await _finished(broker, names)
        finally:
            stop.set()
            await sink
    finally:
        await broker.close()


async def _finished(broker: EmbeddedBroker, names: Names) -> str:
    reader = broker.reader()
    reader.assign({Partition(names.exports, 0): 0})
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                for message in await reader.read(10, 1.0):
                    said = decode_announcement(message.value)
                    assert said is not None
                    assert said.error is None
                    if said.status == "finished":
                        assert said.complete
                        assert said.directory is not None
                        return said.directory
    finally:
        await reader.close()


def test_the_rows_are_hostile(made: Made) -> None:
    text = "".join(
        value
        for content in made.rows.values()
        for row in content
        for value in row.values()
        if isinstance(value, str)
    )
    assert all(some in text for some in hostile.TEXTS)
    assert sum(map(len, made.rows.values())) == ROWS


def test_csv(made: Made) -> None:
    expected.compare(made.rows, reading.csv_cells(made.directory), expected.csv_cell)


def test_json(made: Made) -> None:
    found = reading.document(made.directory)
    metadata = found.pop("export_metadata")
    assert metadata["record_counts"] == {name: len(rows) for name, rows in made.rows.items()}
    assert list(found) == list(TABLES)
    for entity, rows in made.rows.items():
        assert len(found[entity]) == len(rows)
        for row, wanted_row in zip(found[entity], rows, strict=True):
            assert list(row.items()) == list(wanted_row.items())


def test_calamine(made: Made) -> None:
    cells = reading.calamine_cells(reading.workbook(made.directory))
    expected.compare(made.rows, cells, expected.sheet_cell)


def test_openpyxl(made: Made) -> None:
    cells = reading.openpyxl_cells(reading.workbook(made.directory))
    expected.compare(made.rows, cells, expected.sheet_cell)


def test_no_cell_of_the_workbook_is_a_formula(made: Made) -> None:
    assert reading.formula_elements(reading.workbook(made.directory)) == 0


def test_the_manifest_names_every_file_every_cut_cell_and_counts_the_formulas(made: Made) -> None:
    assert list(reading.file_faults(made.directory)) == []
    assert made.manifest["formula_cells"] == expected.formulas(made.rows)
    listed = {
        expected.LongCell(c["entity"], c["key"], c["column"], c["characters"])
        for c in made.manifest["xlsx_cut_cells"]
    }
    assert listed == expected.long_cells(made.rows)
    assert len(listed) > ROWS // 2_500
