"""The readers of files: rows a second, alone and beside the fastest library of each format.

The libraries give values of Python or columns in memory; ours give records as JSON, each with its
place, and hold no file as a whole. polars is mentioned where it is installed (`make bench`).
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from python_calamine import CalamineWorkbook

from schemas import ENTITIES
from tests.bench import mix
from tests.bench.figures import Figure, alternate
from tests.bench.libraries import Blocks
from tests.bench.setting import Bench
from worker.checking import Checker
from worker.core.decode import DEFAULT_LIMIT
from worker.exports.formats.csv import csv_chunks
from worker.exports.formats.json import json_chunks
from worker.exports.formats.xlsx import xlsx_chunks
from worker.exports.metadata import Metadata
from worker.files import expand, in_entity_order, read

SECTION = "readers"
ENTITY = ENTITIES["users"]
CHECKED = 200_000
CHECK_AIM = 5.0
"""Seconds for `buddy check` of a workbook of so many users."""
_ROUNDS = 3

Read = Callable[[Path], object]


def run(bench: Bench) -> list[Figure]:
    """Rows a second of each format, and how long a large workbook takes to be checked."""
    figures = []
    with bench.folder() as folder:
        for format_, beside in _libraries().items():
            bench.say(f"readers: {format_}")
            path = written(format_, bench.records // 2, folder)
            works: list[Callable[[], object]] = [partial(_ours, path)]
            works += [partial(work, path) for work in beside.values()]
            ours, *theirs = alternate(works, _ROUNDS)
            rows = _ours(path)
            figures.append(
                Figure(
                    section=SECTION,
                    name=f"{format_.upper()}: {rows:,} users, {len(ENTITY.columns)} columns",
                    value=rows / ours.wall,
                    unit="rows/s",
                    beside={n: rows / t.wall for n, t in zip(beside, theirs, strict=True)},
                    note=f"{rows / ours.cpu:,.0f} per CPU second",
                )
            )
        figures.append(_check(bench, folder))
    return figures


def written(format_: str, rows: int, folder: Path) -> Path:
    """A file of so many users, which come again after a while, as we export it."""
    blocks = list(mix.blocks(mix.canonical()[ENTITY.name], rows))
    path = folder / f"{ENTITY.name}.{format_}"
    with path.open("wb") as file:
        file.writelines(_chunks(format_, blocks))
    return path


def _check(bench: Bench, folder: Path) -> Figure:
    rows = min(CHECKED, bench.records)
    path = written("xlsx", rows, folder)
    (timing,) = alternate([partial(_checked, path)], _ROUNDS)
    return Figure(
        section=SECTION,
        name=f"check: a workbook of {rows:,} users",
        value=timing.wall,
        unit="s",
        aim=CHECK_AIM * rows / CHECKED,
        at_most=True,
        note=f"{rows / timing.cpu:,.0f} rows per CPU second",
    )


def _ours(path: Path) -> int:
    return sum(1 for _ in read(path, None))


def _checked(path: Path) -> int:
    checker = Checker(lambda: time.time_ns() // 1_000_000, 60, DEFAULT_LIMIT)
    return sum(1 for _ in checker.check(in_entity_order(expand([path], None))))


def _chunks(format_: str, blocks: Blocks) -> Iterable[bytes]:
    now = datetime.now(UTC)
    counts = {ENTITY.name: sum(map(len, blocks))}
    metadata = Metadata(
        export_id="bench", export_date=now, start=now.date(), end=now.date(), counts=counts
    )
    match format_:
        case "ndjson":
            return (row + b"\n" for block in blocks for row in block)
        case "csv":
            return csv_chunks(ENTITY, metadata, blocks)
        case "json":
            return json_chunks(metadata, [(ENTITY, blocks)])
        case _:
            return xlsx_chunks(metadata, [(ENTITY, blocks)])


def _libraries() -> dict[str, Mapping[str, Read]]:
    polars: dict[str, Mapping[str, Read]] = {}
    if find_spec("polars") is not None:
        polars = {"ndjson": {"polars": _polars_lines}, "csv": {"polars": _polars_table}}
    return {
        "ndjson": {"msgspec": _msgspec_lines, **polars.get("ndjson", {})},
        "csv": {"csv.reader": _csv_reader, **polars.get("csv", {})},
        "json": {"msgspec": _msgspec},
        "xlsx": {"calamine": _calamine},
    }


def _msgspec_lines(path: Path) -> object:
    return msgspec.json.Decoder().decode_lines(path.read_bytes())


def _msgspec(path: Path) -> object:
    return msgspec.json.decode(path.read_bytes())


def _csv_reader(path: Path) -> object:
    with path.open(encoding="utf-8", newline="") as file:
        return sum(1 for _ in csv.reader(file))


def _polars_lines(path: Path) -> object:
    polars: Any = import_module("polars")
    return polars.read_ndjson(path, infer_schema_length=1_000)


def _polars_table(path: Path) -> object:
    polars: Any = import_module("polars")
    return polars.read_csv(path, comment_prefix="#", infer_schema=False)


def _calamine(path: Path) -> object:
    return CalamineWorkbook.from_path(path).get_sheet_by_name(ENTITY.sheet).to_python()
