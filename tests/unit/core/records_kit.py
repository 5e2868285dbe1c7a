"""Strategies that make records.

`good_records` draws a record of each shape the contract allows; `spoiled_records` damages one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any, NamedTuple

from hypothesis import strategies as st

from schemas import ENTITIES, Column, Entity, Kind
from worker.core.decode import decoders

DECODERS = decoders()
LATEST = datetime(2026, 1, 1, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
filled = texts.filter(lambda text: text != "" and not text.isspace())
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
label = st.from_regex(r"\A[a-zA-Z0-9æøå](?:[a-zA-Z0-9æøå-]{0,5}[a-zA-Z0-9æøå])?\Z")
local = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="@"),
    min_size=1,
    max_size=20,
)

moments = st.datetimes(datetime(1, 1, 2), datetime(2025, 12, 30))  # noqa: DTZ001
fractions = st.just("") | st.text("0123456789", min_size=1, max_size=9).map(".".__add__)
offsets = st.sampled_from(["", "Z", "z", "+00:00", "-0000"]) | st.builds(
    "{}{:02}{}{:02}".format,
    st.sampled_from("+-"),
    st.integers(0, 23),
    st.sampled_from([":", ""]),
    st.integers(0, 59),
)


def _timestamp(moment: datetime, between: str, fraction: str, offset: str) -> str:
    date = f"{moment.year:04}-{moment.month:02}-{moment.day:02}"
    return f"{date}{between}{moment:%H:%M:%S}{fraction}{offset}"


timestamps = st.builds(_timestamp, moments, st.sampled_from("Tt "), fractions, offsets)
"""A moment in each of the spellings that the contract allows."""

addresses = st.builds(
    lambda local, host: f"{local}@{'.'.join(host)}", local, st.lists(label, min_size=1, max_size=3)
)
"""An address, in whatever case."""


@cache
def values(column: Column) -> st.SearchStrategy[Any]:
    """What a column may hold, spelled in any way that is allowed."""
    spelled: st.SearchStrategy[Any]
    match column.kind:
        case Kind.UUID:
            ids = st.uuids(version=4).map(str)
            spelled = ids | ids.map(str.upper)
        case Kind.TIMESTAMP:
            spelled = timestamps
        case Kind.EMAIL:
            spelled = addresses
        case Kind.ENUM:
            spelled = st.sampled_from(column.values)
        case Kind.INTEGER:
            assert column.lowest is not None
            spelled = st.integers(column.lowest, column.highest)
        case Kind.RATING:
            spelled = st.floats(0, 1) | st.sampled_from([0, 1])
        case Kind.TEXTS:
            spelled = st.lists(texts, max_size=4)
        case Kind.INTEGERS:
            spelled = st.lists(st.integers(column.lowest, column.highest), max_size=4)
        case Kind.OBJECT:
            spelled = st.dictionaries(texts, json_values, max_size=4)
        case Kind.TEXT:
            spelled = filled if column.required else texts
    return spelled


class Drawn(NamedTuple):
    """A good record: its entity, its values, and its JSON."""

    entity: Entity
    record: dict[str, Any]
    value: bytes


def spell(record: Any, *, ascii_only: bool = False, wide: bool = False) -> bytes:
    """A record as JSON, in one of the ways to write it."""
    separators = (" ,\n", " :\t") if wide else (",", ":")
    return json.dumps(record, ensure_ascii=ascii_only, separators=separators).encode()


entities = st.sampled_from(list(ENTITIES))
presences = st.sampled_from(["", "value", "value", "no"])
absences = st.sampled_from([None, ""])
flags = st.booleans()


@st.composite
def good_records(draw: st.DrawFn) -> Drawn:
    """A record that the specification allows, in any rendering, of any entity."""
    entity = ENTITIES[draw(entities)]
    record = {}
    for column in entity.columns:
        choice = "value" if column.required else draw(presences)
        if choice == "value":
            record[column.name] = draw(values(column))
        elif choice == "no":
            record[column.name] = draw(absences)
    record = {name: record[name] for name in draw(st.permutations(list(record)))}
    value = spell(record, ascii_only=draw(flags), wide=draw(flags))
    return Drawn(entity, record, value)


Damage = Callable[[st.DrawFn, Drawn], bytes]


def _other_value(draw: st.DrawFn, drawn: Drawn) -> bytes:
    name = draw(st.sampled_from([column.name for column in drawn.entity.columns]))
    other = draw(json_values | st.sampled_from(["NULL", 1e400, float("nan"), 10**30, -1, " "]))
    return spell({**drawn.record, name: other})


def _left_out(draw: st.DrawFn, drawn: Drawn) -> bytes:
    name = draw(st.sampled_from(list(drawn.record)))
    return spell({n: v for n, v in drawn.record.items() if n != name})


def _more_fields(draw: st.DrawFn, drawn: Drawn) -> bytes:
    return spell({**draw(st.dictionaries(texts, json_values, max_size=3)), **drawn.record})


def _twice(draw: st.DrawFn, drawn: Drawn) -> bytes:
    name = draw(st.sampled_from([column.name for column in drawn.entity.columns]))
    return drawn.value[:-1] + b"," + spell({name: draw(json_values)})[1:]


def _cut(draw: st.DrawFn, drawn: Drawn) -> bytes:
    place = draw(st.integers(0, len(drawn.value)))
    return drawn.value[:place] + drawn.value[place + draw(st.integers(1, 5)) :]


def _inserted(draw: st.DrawFn, drawn: Drawn) -> bytes:
    place = draw(st.integers(0, len(drawn.value)))
    odd = draw(
        st.binary(min_size=1, max_size=4)
        | st.sampled_from([b"\xef\xbb\xbf", b"\\ud800", b'""', b"NaN", b"\xff", b"e999", b"null"])
    )
    return drawn.value[:place] + odd + drawn.value[place:]


def _surrounded(draw: st.DrawFn, drawn: Drawn) -> bytes:
    around = st.sampled_from([b"", b" ", b"\r\n", b"\t", b"\xef\xbb\xbf", b"{}", b"\0", b"\x0c"])
    return draw(around) + drawn.value + draw(around)


DAMAGES: list[Damage] = [
    _other_value,
    _left_out,
    _more_fields,
    _twice,
    _cut,
    _inserted,
    _surrounded,
]


@st.composite
def spoiled_records(draw: st.DrawFn) -> tuple[Entity, bytes]:
    """A record with something done to it, so that it may be bad, with its entity."""
    drawn = draw(good_records())
    return drawn.entity, draw(st.sampled_from(DAMAGES))(draw, drawn)


def any_values() -> st.SearchStrategy[tuple[Entity, bytes]]:
    """Anything that may come in: bytes, JSON, good records and spoiled ones."""
    of_any = entities.map(ENTITIES.__getitem__)
    return (
        spoiled_records()
        | good_records().map(lambda drawn: (drawn.entity, drawn.value))
        | st.tuples(of_any, st.binary(max_size=60))
        | st.tuples(of_any, json_values.map(spell))
    )
