"""The writers of exports: rows a second, alone and beside the libraries that could do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from schemas import ENTITIES, Entity
from tests.bench import libraries, mix
from tests.bench.figures import Figure, alternate
from tests.bench.libraries import Blocks, Write
from tests.bench.setting import Bench
from worker.exports.formats.csv import csv_chunks
from worker.exports.formats.json import json_chunks
from worker.exports.formats.xlsx import xlsx_chunks
from worker.exports.metadata import Metadata

SECTION = "writers"
AIMS = {"csv": 300_000, "json": 1_000_000, "xlsx": 50_000}
ROWS = 100_000
TEN_COLUMNS = "matches"
_ROUNDS = {"csv": 5, "json": 5, "xlsx": 3}


def run(bench: Bench) -> list[Figure]:
    """Rows a second of each writer."""
    rows = ROWS if bench.records >= ROWS else ROWS // 10
    figures = []
    others: dict[str, Mapping[str, Write]] = {
        "csv": libraries.csv_writers(),
        "json": libraries.json_writers(),
        "xlsx": libraries.xlsx_writers(),
    }
    with bench.folder() as folder:
        for format_, beside in others.items():
            bench.say(f"writers: {format_}")
            figures.append(_measure(format_, ENTITIES[TEN_COLUMNS], rows, beside, folder))
            figures.append(_measure(format_, ENTITIES["skill_sessions"], rows, {}, folder))
    return figures


def producer(format_: str) -> Callable[[Entity, Blocks], int]:
    """The product's writer of that format: bytes written."""
    return {"csv": _csv, "json": _json, "xlsx": _xlsx}[format_]


def _measure(
    format_: str, entity: Entity, rows: int, others: Mapping[str, Write], folder: Path
) -> Figure:
    blocks = list(mix.blocks(mix.canonical()[entity.name], rows))
    works: list[Callable[[], object]] = [partial(producer(format_), entity, blocks)]
    works += [partial(write, entity, blocks, folder) for write in others.values()]
    ours, *theirs = alternate(works, _ROUNDS[format_])
    size = producer(format_)(entity, blocks)
    return Figure(
        section=SECTION,
        name=f"{format_.upper()}: {rows:,} {entity.name}, {len(entity.columns)} columns",
        value=rows / ours.wall,
        unit="rows/s",
        aim=AIMS[format_] if entity.name == TEN_COLUMNS else None,
        beside={name: rows / t.wall for name, t in zip(others, theirs, strict=True)},
        note=f"{size / rows:,.0f} bytes a row, {size / ours.wall / 1e6:,.0f} MB/s",
    )


def _metadata(entity: Entity, blocks: Blocks) -> Metadata:
    now = datetime.now(UTC)
    counts = {entity.name: sum(map(len, blocks))}
    return Metadata(
        export_id="bench", export_date=now, start=now.date(), end=now.date(), counts=counts
    )


def _csv(entity: Entity, blocks: Blocks) -> int:
    return sum(map(len, csv_chunks(entity, _metadata(entity, blocks), blocks)))


def _json(entity: Entity, blocks: Blocks) -> int:
    return sum(map(len, json_chunks(_metadata(entity, blocks), [(entity, blocks)])))


def _xlsx(entity: Entity, blocks: Blocks) -> int:
    return sum(map(len, xlsx_chunks(_metadata(entity, blocks), [(entity, blocks)])))
