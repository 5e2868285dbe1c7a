"""The violations that each column can have, so that their counters exist from the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from schemas import Column, Entity, Kind
from worker.core.violations import Code

_BY_KIND: Final[Mapping[Kind, tuple[Code, ...]]] = MappingProxyType(
    {
        Kind.UUID: (Code.INVALID_UUID,),
        Kind.TIMESTAMP: (Code.INVALID_TIMESTAMP, Code.FUTURE_TIMESTAMP, Code.NAIVE_TIMESTAMP),
        Kind.TEXT: (),
        Kind.EMAIL: (Code.INVALID_EMAIL, Code.DUPLICATE_EMAIL, Code.EMAIL_LOWERCASED),
        Kind.ENUM: (Code.INVALID_ENUM,),
        Kind.INTEGER: (Code.NUMBER_OUT_OF_RANGE,),
        Kind.RATING: (Code.RATING_OUT_OF_RANGE,),
        Kind.TEXTS: (),
        Kind.INTEGERS: (Code.NUMBER_OUT_OF_RANGE,),
        Kind.OBJECT: (Code.NUMBER_OUT_OF_RANGE,),
    }
)
_OF_THE_RECORD: Final = (Code.MALFORMED_RECORD, Code.INVALID_KEY, Code.INTERNAL_ERROR)
_REFERENCES: Final = {"users": Code.ORPHANED_USER_ID, "matches": Code.ORPHANED_MATCH_ID}


def possible_violations(entity: Entity) -> Iterator[tuple[str, Code]]:
    """Every (column, code) pair of an entity's records; column "" is the record as a whole."""
    for code in _OF_THE_RECORD:
        yield "", code
    for column in entity.columns:
        for code in _codes(column):
            yield column.name, code


def column_of(field: str) -> str:
    """The column that a violation's path lies in; "" for the record as a whole."""
    return field.partition("[")[0]


def _codes(column: Column) -> Iterator[Code]:
    yield Code.WRONG_TYPE
    yield from _BY_KIND[column.kind]
    if column.required:
        yield Code.MISSING_REQUIRED_FIELD
    if column.kind is Kind.TEXT and column.longest is not None:
        yield Code.TEXT_TOO_LONG
    if column.refers_to is not None:
        yield _REFERENCES[column.refers_to]
    if column.names is not None:
        yield Code.ORPHANED_ATTENDEE
