"""Canonical rows for the tests of exports and files, and whole exports of them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st

from schemas import ENTITIES, Column, Entity, Kind
from worker.exports.layout import FORMATS, Format
from worker.exports.manifest import Options
from worker.exports.metadata import Metadata
from worker.exports.places.directory import DirectoryPlace
from worker.exports.spool import Spool, SpoolFile
from worker.exports.write import write_export

FEWER = settings(max_examples=max(settings().max_examples // 4, 1), deadline=None)
"""For tests that write whole exports."""

_T = TypeVar("_T")

EXPORT_ID = "550e8400-e29b-41d4-a716-446655440000"

HOSTILE = (
    '"',
    '""',
    ",",
    "a\nb",
    "a\rb",
    "a\r\nb",
    "\n",
    "=1+1",
    "+1",
    "-1",
    "@x",
    "\t=1",
    "\r=1",
    "'=1",
    " lead",
    "trail ",
    "two  spaces",
    "\x00",
    "\x01\x1f\x7f\x85",
    "_x0041_",
    "_x0041_x0042_",
    "_x0041\x01",
    "_x005F_",
    "__x000D_",
    "_X0041_",
    "\ufffe\uffff\ufdd0",
    "]]>",
    "<b>&amp;&#10;</b>",
    "<!-- -->",
    "שלום עולם\u202e",
    "😀👩‍👩‍👧",
    "\u2028\u2029\u0085",
    "\ufeff",
    "# comment",
    "null",
    "true",
    "007",
    "1e5",
    "2024-01-01",
    "[1",
    "{",
    "#N/A",
    "\\u0041\\",
    "ｆｕｌｌ＝",
)

_texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(
        st.characters(codec="utf-8") | st.sampled_from('_x0041\x01\r\n\t",;= <&>'),
        min_size=1,
        max_size=20,
    ),
)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)


def _uuid(value: int) -> str:
    from uuid import UUID

    return str(UUID(int=value, version=4))


_uuids = st.integers(0, 2**128 - 1).map(_uuid)
_stamps = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)).map(  # noqa: DTZ001
    lambda moment: moment.isoformat() + "Z"
)
_ratings = st.sampled_from((0.0, 1.0, 0.5, 0.85, 0.855, 1e-7, 5e-324, 0.1 + 0.2)) | st.floats(0, 1)


def _cells(column: Column) -> st.SearchStrategy[Any]:
    match column.kind:
        case Kind.UUID:
            return _uuids
        case Kind.TIMESTAMP:
            return _stamps
        case Kind.ENUM:
            return st.sampled_from(column.values)
        case Kind.INTEGER:
            return st.integers(column.lowest or 0, column.highest)
        case Kind.RATING:
            return _ratings.map(lambda rating: rating + 0.0)
        case Kind.TEXTS:
            return st.lists(_texts | st.just(""), max_size=3)
        case Kind.INTEGERS:
            return st.lists(st.integers(1, 17), max_size=3)
        case Kind.OBJECT:
            return st.dictionaries(_texts | st.just(""), _json, max_size=3)
        case Kind.TEXT | Kind.EMAIL:
            return _texts


def rows_of(entity: Entity, most: int = 5) -> st.SearchStrategy[list[bytes]]:
    """Lists of canonical rows of an entity."""
    required = {c.name: _cells(c) for c in entity.columns if c.required}
    optional = {c.name: _cells(c) for c in entity.columns if not c.required}

    def in_order(row: Mapping[str, Any]) -> bytes:
        return msgspec.json.encode({c.name: row[c.name] for c in entity.columns if c.name in row})

    return st.lists(st.fixed_dictionaries(required, optional=optional).map(in_order), max_size=most)


exports = st.fixed_dictionaries(
    {}, optional={entity.name: rows_of(entity) for entity in ENTITIES.values()}
).map(lambda tables: {name: tables[name] for name in ENTITIES if name in tables})
"""Rows by entity, of some of the entities."""


def metadata_of(tables: Mapping[str, Sequence[bytes]], **changes: Any) -> Metadata:
    values: dict[str, Any] = {
        "export_id": EXPORT_ID,
        "export_date": datetime(2025, 11, 22, 10, 30, tzinfo=UTC),
        "start": date(2024, 1, 1),
        "end": date(2025, 11, 22),
        "counts": {name: len(rows) for name, rows in tables.items()},
    }
    return Metadata(**(values | changes))


def spool_of(folder: Path, tables: Mapping[str, Sequence[bytes]]) -> Spool:
    """Spool files of the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.spool" for name in tables}
    for name, rows in tables.items():
        paths[name].write_bytes(b"".join(row + b"\n" for row in rows))
    return Spool({name: as_written(path) for name, path in paths.items()})


def as_written(path: Path) -> SpoolFile:
    """The file as it is, taken for what was written."""
    return SpoolFile(path, zlib.crc32(path.read_bytes()))


def export_to(
    folder: Path,
    tables: Mapping[str, Sequence[bytes]],
    *formats: Format,
    guard_formulas: bool = False,
    **arguments: Any,
) -> Path:
    """Write an export of the rows and return its directory."""
    options = Options(
        entities=tuple(tables), formats=formats or FORMATS, guard_formulas=guard_formulas
    )
    finished = asyncio.run(
        write_export(
            DirectoryPlace(folder / "exports"),
            spool_of(folder / "spool", tables),
            metadata_of(tables),
            options,
            **arguments,
        )
    )
    return folder / "exports" / finished.name


def same(entity: Entity, first: bytes, second: bytes) -> bool:
    """Whether two records are the same row: byte for byte, but for how a rating is written."""
    one, two = (msgspec.json.decode(row, type=dict[str, msgspec.Raw]) for row in (first, second))
    ratings = {column.name for column in entity.columns if column.kind is Kind.RATING}
    return list(one) == list(two) and all(
        float(bytes(one[name])) == float(bytes(two[name]))
        if name in ratings
        else bytes(one[name]) == bytes(two[name])
        for name in one
    )


def user(**fields: Any) -> bytes:
    return msgspec.json.encode(
        {
            "id": "550e8400-e29b-41d4-a716-446655440000",
            "email": "alice@example.com",
            "first_name": "Alice",
            "last_name": "Smith",
            "role": "participant",
            "joined_at": "2024-01-15T10:00:00Z",
        }
        | fields
    )


def feedback(**fields: Any) -> bytes:
    return msgspec.json.encode(
        {
            "feedback_id": "550e8400-e29b-41d4-a716-446655440000",
            "match_id": "660e8400-e29b-41d4-a716-446655440000",
            "from_role": "buddy",
            "rating": 0.5,
        }
        | fields
    )


def drained(chunks: Generator[bytes, None, _T]) -> tuple[bytes, _T]:
    """What a writer yields, and what it returns at its end."""
    parts = []
    while True:
        try:
            parts.append(next(chunks))
        except StopIteration as end:
            return b"".join(parts), end.value
