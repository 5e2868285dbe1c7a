"""The tables of docs/spec.md: columns in their order, the type of each, keys, sheets."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from tests.paths import ROOT
from tests.proofs.chaos.entities import SHAPES

_PAGE: Final = (ROOT / "docs" / "spec.md").read_text("utf-8")
_SECTION: Final = re.compile(
    r"^### CSV Schema \(`(\w+)\.csv`\)$.*?^```csv\n([\w,]+)\n```$(.*?)(?=^## )",
    re.MULTILINE | re.DOTALL,
)
_FIELD: Final = re.compile(r"^\| `(\w+)` \| (\w+) \|", re.MULTILINE)
_SHEET: Final = re.compile(r"── Sheet: (.+)")

NUMBERS: Final = frozenset({"Integer", "Decimal"})
NESTED: Final = frozenset({"Array", "Object"})
FREE: Final = frozenset({"String", "Text"})


class Table(NamedTuple):
    """One entity: its columns with their types, the columns of its key, its sheet."""

    columns: dict[str, str]
    key: tuple[str, ...]
    sheet: str


def _tables() -> dict[str, Table]:
    sheets = _SHEET.findall(_PAGE)[1:]  # the first is that of the metadata
    found = {}
    for (entity, header, fields), sheet in zip(_SECTION.findall(_PAGE), sheets, strict=True):
        types = dict(_FIELD.findall(fields))
        names = header.split(",")
        assert set(types) == set(names), entity
        columns = {name: types[name] for name in names}
        found[entity] = Table(columns, SHAPES[entity].key, sheet)
    assert list(found) == list(SHAPES)
    return found


TABLES: Final = _tables()
