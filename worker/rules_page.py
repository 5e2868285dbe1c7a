"""docs/rules.md, derived from the schemas and the violation codes. Pure.

`python -m worker.rules_page > docs/rules.md` writes it anew; tests/unit/test_docs.py compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

from schemas import ENTITIES, Column, Entity, Kind
from schemas.fields import LARGEST_INTEGER
from worker.core.violations import MEANINGS, WARNINGS

_OPENING = """\
# Rules

What a record of each entity must be, and what is reported when it is not. This page is generated
from [schemas/](../schemas) and [worker/core/violations.py](../worker/core/violations.py) by
`python -m worker.rules_page`: change those, not this. The wording that counts stands in the
[contract](contract.md), "Canonical row" and "Violations"; `buddy schema` prints the same as JSON
Schema.

Columns are in the order of the [specification](spec.md). An array's limits are those of its
entries. *Refers to*: the id must be a known one (for matches a warning only); *names*: the entries
ought to be known ids (a warning only)."""

_CODES = """\
## Violations

A record with an error is rejected, one with warnings only is accepted. Codes are stable."""


def rules_page() -> str:
    """The whole page, ending in one newline. The same schemas give the same bytes."""
    sections = [_OPENING, *map(_entity, ENTITIES.values()), f"{_CODES}\n\n{_codes()}"]
    return "\n\n".join(sections) + "\n"


def _entity(entity: Entity) -> str:
    """The section of one entity: what identifies a row, and its columns."""
    about = (
        f"Key: {_code(':'.join(entity.key))} · date: {_code(entity.date)} · "
        f"sheet: {entity.sheet} · CSV file: {_code(f'{entity.name}.csv')}"
    )
    header = ("column", "kind", "required", "allowed", "refers to")
    rows = [
        (
            _code(column.name),
            column.kind.value,
            "yes" if column.required else "no",
            _allowed(column),
            _reference(column),
        )
        for column in entity.columns
    ]
    return f"## {entity.name}\n\n{about}\n\n{_table(header, rows)}"


def _allowed(column: Column) -> str:
    """The limits of a column in words; empty if its kind says everything."""
    if column.values:
        return ", ".join(map(_code, column.values))
    if column.kind is Kind.UUID:
        return "version 4"
    limits = []
    if column.lowest is not None and column.highest is not None:
        limits.append(f"{_number(column, column.lowest)} to {_number(column, column.highest)}")
    if column.longest is not None:
        limits.append(f"at most {column.longest} characters")
    return ", ".join(limits)


def _number(column: Column, limit: int) -> str:
    if column.kind is Kind.RATING:
        return f"{limit:.2f}"
    return "2^53 - 1" if limit == LARGEST_INTEGER else str(limit)


def _reference(column: Column) -> str:
    if column.refers_to is not None:
        return column.refers_to
    return "" if column.names is None else f"names {column.names}"


def _codes() -> str:
    """Every violation code with its severity and meaning."""
    rows = [
        (_code(code.value), "warning" if code in WARNINGS else "error", meaning)
        for code, meaning in MEANINGS.items()
    ]
    return _table(("code", "severity", "meaning"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_lines(header, rows))


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(rules_page())
