"""The same rows in every variant of a file that a person or a program may make of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpyxl.utils import get_column_letter

from schemas import ENTITIES, Kind
from tests.unit.core_kit import NOW, good, to_json
from tests.unit.export_kit import FEWER, rows_of, same
from tests.unit.files.excel_kit import excel, strings
from worker.core.decode import DEFAULT_LIMIT, Decoded, decoders, latest_moment
from worker.exports.formats.table import rating_text
from worker.exports.formats.xlsx_text import to_xml
from worker.files import expand

Table = list[list[str]]

tables = st.sampled_from(sorted(ENTITIES)).flatmap(
    lambda name: st.tuples(st.just(name), rows_of(ENTITIES[name]))
)
shuffles = st.randoms(use_true_random=False)


def cells_of(entity: str, row: bytes) -> list[str]:
    """What a CSV file or a sheet says of a canonical row; empty where it says nothing."""
    found = msgspec.json.decode(row)
    raw = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
    cells = []
    for column in ENTITIES[entity].columns:
        if column.name not in found:
            cells.append("")
        elif column.kind is Kind.RATING:
            cells.append(rating_text(found[column.name]))
        elif column.kind in (Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT):
            cells.append(bytes(raw[column.name]).decode())
        else:
            cells.append(str(found[column.name]))
    return cells


def by_hand(entity: str, rows: list[bytes], chance: random.Random) -> Table:
    """Header and rows with columns in any order, names in any case, a column that nobody knows."""
    header = [column.name for column in ENTITIES[entity].columns]
    order = list(range(len(header)))
    chance.shuffle(order)
    named = [chance.choice((n, n.upper(), f" {n.title()}  ", f"\u00a0{n}")) for n in header]
    table = [[named[n] for n in order]]
    table += [[cells[n] for n in order] for cells in (cells_of(entity, row) for row in rows)]
    if chance.random() < 0.5:
        place = chance.randrange(len(header) + 1)
        for n, cells in enumerate(table):
            cells.insert(place, "remark;," if not n else chance.choice(("", "x,;\ty")))
    return table


def read(path: Path, entity: str | None = None) -> list[bytes]:
    """The records of a file without fields that nobody knows."""
    found = []
    for source in expand([path], entity):
        for record in source.read():
            assert record.fault is None
            known = {column.name for column in ENTITIES[record.entity].columns}
            row = msgspec.json.decode(record.value, type=dict[str, msgspec.Raw])
            found.append(msgspec.json.encode({k: v for k, v in row.items() if k in known}))
    return found


def assert_same(entity: str, rows: list[bytes], found: list[bytes]) -> None:
    assert len(found) == len(rows)
    for before, after in zip(rows, found, strict=True):
        assert same(ENTITIES[entity], before, after), (before, after)


@FEWER
@given(
    tables,
    shuffles,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_csv(
    table: tuple[str, list[bytes]],
    chance: random.Random,
    separator: str,
    encoding: str,
    end: str,
    packed: bool,
) -> None:
    entity, rows = table
    lines = by_hand(entity, rows, chance)
    out = io.StringIO()
    quoted = chance.random() < 0.5
    if separator != "," and chance.random() < 0.5:
        lines = decimal_commas(lines)
    plain = csv.writer(out, delimiter=separator, lineterminator=end)
    careful = csv.writer(out, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    if chance.random() < 0.5:
        out.write(f"# Buddy Program Export{end}# Version: 1.0.0{end}")
    for cells in lines:
        # csv leaves a CR or LF bare that ends no line of its own; a spreadsheet does not.
        writer = careful if quoted or any({*"\r\n"} & {*cell} for cell in cells) else plain
        writer.writerow(cells)
        if chance.random() < 0.2:
            out.write(chance.choice(("", separator * len(cells))) + end)
    text = ("\ufeff" if encoding.startswith("utf-16") else "") + out.getvalue()
    data = text.encode(encoding)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{entity}.csv{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
        assert_same(entity, rows, read(path))


def decimal_commas(lines: Table) -> Table:
    ratings = {c.name for e in ENTITIES.values() for c in e.columns if c.kind is Kind.RATING}
    places = [n for n, name in enumerate(lines[0]) if name.strip().lower() in ratings]
    return [
        [c.replace(".", ",") if n in places and i else c for n, c in enumerate(cells)]
        for i, cells in enumerate(lines)
    ]


@FEWER
@given(tables, shuffles)
def test_workbooks(table: tuple[str, list[bytes]], chance: random.Random) -> None:
    entity, rows = table
    header, *cells = by_hand(entity, rows, chance)
    shared: list[str] = []
    lines = [strings(chance.randrange(1, 4), *header)]
    number = 4
    for row in cells:
        number += chance.randrange(1, 3)
        xml = []
        for n, text in enumerate(row):
            if not text and chance.random() < 0.5:
                continue
            place = f'r="{get_column_letter(n + 1)}{number}"'
            escaped = to_xml(text)
            if chance.random() < 0.5:
                shared.append(f'<t xml:space="preserve">{escaped}</t>')
                xml.append(f'<c {place} t="s"><v>{len(shared) - 1}</v></c>')
            else:
                xml.append(f'<c {place} t="inlineStr"><is><t>{escaped}</t></is></c>')
        lines.append(f'<row r="{number}">{"".join(xml)}</row>')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.xlsx"
        title = chance.choice((ENTITIES[entity].sheet, entity.upper(), "Members"))
        excel(path, {"Notes": strings(1, "x"), title: "".join(lines)}, shared)
        assert_same(entity, rows, read(path))


@FEWER
@given(
    tables, st.sampled_from([None, 2]), st.booleans(), st.sampled_from(["array", "many", "field"])
)
def test_json(table: tuple[str, list[bytes]], indent: int | None, packed: bool, shape: str) -> None:
    entity, rows = table
    values = [msgspec.json.decode(row) for row in rows]
    if shape == "array":
        text = json.dumps(values, indent=indent)
    elif shape == "field":
        text = json.dumps({entity: values}, indent=indent, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(value, indent=indent) for value in values) or "{}"
    data = text.encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{entity}.json{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
        found = read(path)
    for before, after in zip(rows, found, strict=True):
        assert msgspec.json.decode(before) == msgspec.json.decode(after)


@pytest.mark.parametrize("entity", sorted(ENTITIES))
def test_what_is_read_is_judged_to_the_same_canonical_row(tmp_path: Path, entity: str) -> None:
    row = to_json(good(entity))
    header = [column.name.upper() for column in ENTITIES[entity].columns]
    cells = cells_of(entity, row)
    text = "\ufeff# made by hand\r\n" + "\r\n".join(
        ";".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in (header, cells)
    )
    (tmp_path / "hand.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "hand.txt").write_bytes(
        b"\xff\xfe" + text.removeprefix("\ufeff").replace('";"', '"\t"').encode("utf-16-le")
    )
    (tmp_path / f"{entity}.json").write_bytes(b"[\n" + row + b"\n]")
    excel(tmp_path / "hand.xlsx", {"Sheet1": strings(1, *header) + strings(3, *cells)})
    seen = set()
    for path in sorted(tmp_path.iterdir()):
        (record,) = [record for one in expand([path], None) for record in one.read()]
        decoder = decoders(DEFAULT_LIMIT)[entity]
        decoded = decoder.decode(record.value, None, latest_moment(NOW, 60))
        assert isinstance(decoded, Decoded)
        seen.add((decoded.key, decoded.row))
    assert len(seen) == 1
