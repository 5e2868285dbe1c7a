"""The registry: each entity and its columns as data, derived from the entity's Struct."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from schemas.checkins import Checkin
from schemas.event_attendance import EventAttendance
from schemas.events import Event
from schemas.feedback import Feedback
from schemas.fields import Row
from schemas.matches import Match
from schemas.milestones import Milestone
from schemas.skill_sessions import SkillSession
from schemas.users import User


class Kind(StrEnum):
    """The kind of a column's values; rules, CSV cells and XLSX cells follow from it."""

    UUID = "uuid"
    TIMESTAMP = "timestamp"
    TEXT = "text"
    EMAIL = "email"
    ENUM = "enum"
    INTEGER = "integer"
    RATING = "rating"
    TEXTS = "array of text"
    INTEGERS = "array of integers"
    OBJECT = "object"


class Column(msgspec.Struct, frozen=True):
    """One column of an entity. Limits that do not apply to its kind are None or empty."""

    name: str
    kind: Kind
    required: bool
    description: str = ""
    lowest: int | None = None
    highest: int | None = None
    longest: int | None = None
    values: tuple[str, ...] = ()
    refers_to: str | None = None
    """The entity that the column refers to: a record waits while the reference is unknown."""
    names: str | None = None
    """The entity whose ids this list should hold; an unknown id is only a warning."""


class Entity(msgspec.Struct, frozen=True):
    """One of the eight entities. `key` and `date` name columns; `sheet` names the XLSX sheet."""

    name: str
    struct: type[Row]
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    date: str
    sheet: str

    def column(self, name: str) -> Column:
        """The column with that name. Raises KeyError if there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


def _literals(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, optional or not, in source order: msgspec sorts its own list."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for part in get_args(hint) if (found := _literals(part))), ())


def _column(field: inspect.Field, hint: Any) -> Column:
    extra: dict[str, str] = {}

    def bare(kind: inspect.Type) -> inspect.Type:
        """Strip Optional and Metadata from the type; collect the metadata in `extra`."""
        if isinstance(kind, inspect.Metadata):
            extra.update((kind.extra_json_schema or {}) | (kind.extra or {}))
            return bare(kind.type)
        if isinstance(kind, inspect.UnionType):
            return bare(next(t for t in kind.types if not isinstance(t, inspect.NoneType)))
        return kind

    kind = bare(field.type)
    item = bare(kind.item_type) if isinstance(kind, inspect.ListType) else None
    column = Column(
        name=field.name,
        kind=Kind.TEXT,
        required=field.required,
        description=extra.get("description", ""),
        refers_to=extra.get("refers_to"),
        names=extra.get("names"),
    )
    replace = msgspec.structs.replace
    match kind:
        case inspect.DateTimeType():
            return replace(column, kind=Kind.TIMESTAMP)
        case inspect.FloatType():
            return replace(column, kind=Kind.RATING, lowest=0, highest=1)
        case inspect.IntType():
            return replace(column, kind=Kind.INTEGER, lowest=kind.ge, highest=kind.le)
        case inspect.LiteralType():
            return replace(column, kind=Kind.ENUM, values=_literals(hint))
        case inspect.DictType():
            return replace(column, kind=Kind.OBJECT)
        case inspect.ListType():
            if isinstance(item, inspect.IntType):
                return replace(column, kind=Kind.INTEGERS, lowest=item.ge, highest=item.le)
            return replace(column, kind=Kind.TEXTS)
        case inspect.StrType():
            return replace(
                column, kind=Kind(extra.get("format", Kind.TEXT)), longest=kind.max_length
            )
    raise TypeError(f"field {field.name}: no kind for {kind}")


def _entity(name: str, struct: type[Row], key: tuple[str, ...], date: str, sheet: str) -> Entity:
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    hints = get_type_hints(struct, include_extras=True)
    columns = tuple(_column(field, hints[field.name]) for field in info.fields)
    return Entity(name, struct, columns, key, date, sheet)


ENTITIES: Final[Mapping[str, Entity]] = MappingProxyType(
    {
        entity.name: entity
        for entity in (
            _entity("users", User, ("id",), "joined_at", "Users"),
            _entity("matches", Match, ("match_id",), "matched_at", "Matches"),
            _entity("events", Event, ("event_id",), "event_date", "Events"),
            _entity(
                "event_attendance",
                EventAttendance,
                ("event_id", "user_id"),
                "attended_at",
                "Event Attendance",
            ),
            _entity(
                "skill_sessions", SkillSession, ("session_id",), "completed_at", "Skill Sessions"
            ),
            _entity("checkins", Checkin, ("checkin_id",), "checkin_date", "Check-ins"),
            _entity("feedback", Feedback, ("feedback_id",), "submitted_at", "Feedback"),
            _entity(
                "milestones", Milestone, ("milestone_id", "user_id"), "reached_at", "Milestones"
            ),
        )
    }
)
"""The eight entities in the order of the specification: referenced entities come first."""
