"""Judges a row against known rows: references, attendees, and whether its address is free."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from schemas import ENTITIES
from worker.core.decode import Decoded, RecordDecoder
from worker.core.keys import id_bytes
from worker.core.rules import read_uuid
from worker.core.violations import Code, Findings, Violation, violation


class Lookup(Protocol):
    """Look-ups at the moment of judging."""

    def user(self, user: bytes, /) -> bool:
        """Whether the user is known."""

    def match(self, match: bytes, /) -> bool:
        """Whether the match is known."""


def missing(row: Decoded, known: Lookup) -> tuple[list[bytes], list[bytes]]:
    """The unknown users and the unknown matches that the row refers to."""
    return (
        [user for user in row.users if user and not known.user(user)],
        [match for match in row.matches if match and not known.match(match)],
    )


def unknown_attendees(row: Decoded, known: Lookup) -> Iterator[bool]:
    """For each attendee in turn, whether it is not the id of a known user."""
    for attendee in row.attendees:
        uuid = read_uuid(attendee)
        yield uuid is None or not known.user(id_bytes(uuid))


def verdict(
    decoder: RecordDecoder,
    row: Decoded,
    known: Lookup,
    users: list[bytes],
    matches: list[bytes],
    *,
    taken: bool,
) -> tuple[Violation, ...]:
    """All violations of a row whose missing references are definitely missing, in column order.

    The row's own warnings are included. `taken` says whether another user holds its address. An
    error among the violations means that the row is rejected.
    """
    if not (users or matches or taken or row.attendees):
        return row.warnings
    found = Findings()
    for field, user in zip(decoder.user_fields, row.users, strict=True):
        if user in users:
            found.add(Code.ORPHANED_USER_ID, field, "expected the id of a known user")
    for field, match in zip(decoder.match_fields, row.matches, strict=True):
        if match in matches:
            found.add(Code.ORPHANED_MATCH_ID, field, "expected the id of a known match")
    if taken:
        found.add(Code.DUPLICATE_EMAIL, "email", "expected an address that nobody else holds")
    if not found.errors:
        for index, unknown in enumerate(unknown_attendees(row, known)):
            if unknown:
                path = f"attendees[{index}]"
                found.add(Code.ORPHANED_ATTENDEE, path, "expected the id of a known user")
    return in_column_order(decoder.entity.name, (*row.warnings, *found.violations))


def rejects(violations: tuple[Violation, ...]) -> bool:
    """Whether one of the violations is an error."""
    return any(found.severity == "error" for found in violations)


def unexpected() -> Violation:
    """The violation of a record whose judging failed."""
    return violation(Code.INTERNAL_ERROR, "", "this record could not be judged; see the log")


def in_column_order(entity: str, violations: tuple[Violation, ...]) -> tuple[Violation, ...]:
    """Violations in reporting order: the record as a whole first, then by column."""
    if len(violations) < 2:
        return violations
    order = {column.name: index for index, column in enumerate(ENTITIES[entity].columns)}
    return tuple(sorted(violations, key=lambda v: order.get(v.field.split("[")[0], -1)))
