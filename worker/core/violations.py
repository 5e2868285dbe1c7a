"""Violations: the possible faults of a record. Rules: docs/contract.md, "Violations"."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

import msgspec

Severity = Literal["error", "warning"]

MOST_REPORTED: Final = 100
"""A rejection lists at most this many violations, and the number of omitted ones."""


class Code(StrEnum):
    """Stable codes: ops and upstream teams match on them."""

    MALFORMED_RECORD = "malformed_record"
    MISSING_REQUIRED_FIELD = "missing_required_field"
    WRONG_TYPE = "wrong_type"
    INVALID_UUID = "invalid_uuid"
    INVALID_TIMESTAMP = "invalid_timestamp"
    FUTURE_TIMESTAMP = "future_timestamp"
    INVALID_ENUM = "invalid_enum"
    RATING_OUT_OF_RANGE = "rating_out_of_range"
    NUMBER_OUT_OF_RANGE = "number_out_of_range"
    TEXT_TOO_LONG = "text_too_long"
    INVALID_EMAIL = "invalid_email"
    DUPLICATE_EMAIL = "duplicate_email"
    INVALID_KEY = "invalid_key"
    ORPHANED_USER_ID = "orphaned_user_id"
    INTERNAL_ERROR = "internal_error"
    ORPHANED_MATCH_ID = "orphaned_match_id"
    ORPHANED_ATTENDEE = "orphaned_attendee"
    NAIVE_TIMESTAMP = "naive_timestamp"
    EMAIL_LOWERCASED = "email_lowercased"


WARNINGS: Final = frozenset(
    {Code.ORPHANED_MATCH_ID, Code.ORPHANED_ATTENDEE, Code.NAIVE_TIMESTAMP, Code.EMAIL_LOWERCASED}
)

MEANINGS: Final[Mapping[Code, str]] = MappingProxyType(
    {
        Code.MALFORMED_RECORD: "not a JSON object that can be read, or over the size limit",
        Code.MISSING_REQUIRED_FIELD: "a required field is absent, null, empty or blank",
        Code.WRONG_TYPE: "another JSON type than specified",
        Code.INVALID_UUID: "not a UUID of version 4, of 36 characters with hyphens",
        Code.INVALID_TIMESTAMP: "not an ISO 8601 date and time",
        Code.FUTURE_TIMESTAMP: "later than the record's arrival",
        Code.INVALID_ENUM: "not one of the listed values",
        Code.RATING_OUT_OF_RANGE: "a rating outside 0.00 to 1.00",
        Code.NUMBER_OUT_OF_RANGE: "a number outside its range",
        Code.TEXT_TOO_LONG: "text over its maximum length",
        Code.INVALID_EMAIL: "not an e-mail address",
        Code.DUPLICATE_EMAIL: "another user holds the address",
        Code.INVALID_KEY: "the message key contradicts the record or cannot be read",
        Code.ORPHANED_USER_ID: "refers to a user that is not known, after the grace",
        Code.INTERNAL_ERROR: "judging the record failed unexpectedly",
        Code.ORPHANED_MATCH_ID: "refers to a match that is not known, after the grace",
        Code.ORPHANED_ATTENDEE: "an attendee is no known user",
        Code.NAIVE_TIMESTAMP: "no UTC offset: read as UTC",
        Code.EMAIL_LOWERCASED: "the address had upper-case letters",
    }
)


class Violation(msgspec.Struct, frozen=True, gc=False):
    """One thing wrong with a record. `field` is a path, empty for the record as a whole.

    The message says what was expected; it never quotes the record.
    """

    code: Code
    field: str
    message: str
    severity: Severity


def violation(code: Code, field: str, message: str) -> Violation:
    """A violation with the severity that its code has."""
    return Violation(code, field, message, "warning" if code in WARNINGS else "error")


class Findings:
    """Collects the violations of one record: the first 100, and the number of the others."""

    __slots__ = ("errors", "omitted", "violations")

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.omitted = 0
        self.errors = 0

    def add_first(self, code: Code, field: str, message: str) -> None:
        """Add a violation of the record as a whole, before those of its fields."""
        self.errors += code not in WARNINGS
        self.violations.insert(0, violation(code, field, message))
        if len(self.violations) > MOST_REPORTED:
            self.violations.pop()
            self.omitted += 1

    def add(self, code: Code, field: str, message: str) -> None:
        """Add one violation."""
        if code not in WARNINGS:
            self.errors += 1
        if len(self.violations) < MOST_REPORTED:
            self.violations.append(violation(code, field, message))
        else:
            self.omitted += 1
