"""Whole exports by a sink as people run it: rows a second, and the memory of its process.

The rows are put into the accepted topics of an embedded broker, all different. A `buddy sink` reads
them into its store, and `buddy export --wait` asks it for CSV with JSON, then for XLSX: each takes
a cut, collects the rows from the store and writes the files.
"""

from __future__ import annotations

import asyncio
import re
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.acceptance.kit import Buddy, Service
from tests.bench import mix
from tests.bench.figures import Figure
from tests.bench.machine import peak_memory
from tests.bench.running import ended, opened
from tests.bench.setting import Bench
from worker.core.topics import Names
from worker.sink.requests import decode_announcement
from worker.stream import Partition, ProducerRecord

SECTION = "exports"
MEMORY_AIM = 400.0
"""MB, of the sink from its start to the end of its last export."""

_ASKED = (("csv", "json"), ("xlsx",))
_SHEET_ROWS = 1_048_576
_BATCH = 2_000
_LIMIT = 2 * 3600.0  # seconds: a hang fails


def run(bench: Bench) -> Iterator[Figure]:
    """Reading the rows, then an export each of the formats asked for."""
    rows = bench.export_rows
    with bench.folder() as folder, ended(Buddy(folder / "sink")) as buddy:
        buddy.create_topics(partitions=4)
        bench.say(f"exports: {rows:,} rows into the accepted topics")
        asyncio.run(_fill(buddy, rows))
        bench.say("exports: a sink reads them")
        began = time.perf_counter()
        sink = buddy.start("sink").ready()
        _export(buddy, "nothing", "--format", "csv", "--to", "1000-01-01")  # waits for all of them
        seconds = time.perf_counter() - began
        yield _figure(f"sink: {rows:,} rows read into the store", rows, seconds, sink, "")
        for formats in _ASKED:
            name = " and ".join(formats).upper()
            bench.say(f"exports: {name}")
            began = time.perf_counter()
            options = [word for format_ in formats for word in ("--format", format_)]
            directory = _export(buddy, name.replace(" ", "-"), *options)
            seconds = time.perf_counter() - began
            told = asyncio.run(_progress(buddy, name.replace(" ", "-")))
            note = f"{_sizes(directory)}; progress told: {told}"
            yield _figure(f"export of {rows:,} rows, {name}", rows, seconds, sink, note)
        yield Figure(
            section=SECTION,
            name="highest memory of the sink, all this time",
            value=peak_memory(sink.process.pid) / 1e6,
            unit="MB",
            aim=MEMORY_AIM,
            at_most=True,
        )
        sink.stop().succeeded()


def _figure(name: str, rows: int, seconds: float, sink: Service, note: str) -> Figure:
    peak = peak_memory(sink.process.pid) / 1e6
    note = f"{seconds:.1f} s, memory up to now {peak:.0f} MB" + (f"; {note}" if note else "")
    return Figure(section=SECTION, name=name, value=rows / seconds, unit="rows/s", note=note)


async def _fill(buddy: Buddy, total: int) -> None:
    topics = Names(buddy.names.prefix).accepted
    messages = (ProducerRecord(topics(entity), key, row) for entity, key, row in mix.many(total))
    async with opened(buddy.broker) as broker:
        while batch := list(islice(messages, _BATCH)):
            await broker.publish(batch)


def _export(buddy: Buddy, request: str, *options: str) -> Path:
    command = ("export", "--wait", "--json", "--id", request, *options)
    answer = buddy.run(*command, deadline=_LIMIT).succeeded().json
    return buddy.directory / "exports" / str(answer["directory"])


async def _progress(buddy: Buddy, request: str) -> str:
    """How often each stage of an export has told how far it was."""
    stages: Counter[str] = Counter()
    async with opened(buddy.broker) as broker:
        reader = broker.reader()
        reader.assign({Partition(buddy.names.exports, 0): 0})
        while messages := await reader.read(1_000, 0.2):
            for message in messages:
                said = decode_announcement(message.value)
                if said is not None and said.request_id == request and said.progress is not None:
                    stages[said.progress.stage] += 1
        await reader.close()
    return ", ".join(f"{stage} {count}" for stage, count in stages.items()) or "too quick"


def _sizes(directory: Path) -> str:
    """How large the files of each kind are, and over how many sheets the rows go."""
    sizes: Counter[str] = Counter()
    sheets = ""
    for path in directory.rglob("buddy_export_*/*.csv"):
        sizes["csv"] += path.stat().st_size
    for path in directory.glob("buddy_export_*.*"):
        sizes[path.suffix[1:]] += path.stat().st_size
        if path.suffix == ".xlsx":
            sheets = f", {_most_sheets(path)}"
    return ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items()) + sheets


def _most_sheets(workbook: Path) -> str:
    """Of the entity that takes the most sheets; RuntimeError if one is too long for Excel."""
    sheets: Counter[str] = Counter()
    with zipfile.ZipFile(workbook) as archive:
        for title in re.findall(r'<sheet name="([^"]+)"', archive.read("xl/workbook.xml").decode()):
            sheets[title.partition(" (")[0]] += 1
        for name in archive.namelist():
            if name.startswith("xl/worksheets/"):
                with archive.open(name) as sheet:
                    found = re.search(rb'<dimension ref="A1:[A-Z]+(\d+)"', sheet.read(2_000))
                if found is None or int(found[1]) > _SHEET_ROWS:
                    raise RuntimeError(f"{name} has more rows than Excel takes")
    title, count = sheets.most_common(1)[0]
    return f"{title} on {count} sheet{'s' * (count > 1)}"
