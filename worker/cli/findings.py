"""Prints the findings of `buddy check` in three forms: for people, programs and a code host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.checking import Checked, Checker
from worker.cli.console import count_of, print_json, print_table, say
from worker.cli.unknown_fields import print_unknown
from worker.core.shown import shown
from worker.core.violations import Code, Severity
from worker.files import Mismatch
from worker.files.records import Place

_SHOWN: Final = 20
"""Number of records shown to people."""
_SHOWN_OF_A_RECORD: Final = 5
_LISTED: Final = 10_000
"""Number of findings listed for programs; --rejected and --warnings have no limit."""


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One violation, with the place of its record."""

    path: str
    line: int
    entity: str
    field: str
    code: Code
    severity: Severity
    message: str
    sheet: str | None = None


class FindingsList:
    """Collects the findings to print, up to the limits above."""

    def __init__(self) -> None:
        self.listed: list[Finding] = []
        self.omitted = 0
        """Number of findings that are not listed."""
        self.shown: list[Checked] = []
        """The first rejected records."""
        self.warned: Counter[str] = Counter()
        """Number of accepted records by warning code."""

    def add(self, checked: Checked) -> None:
        """Add one checked record."""
        if checked.rejection is None and not checked.violations:
            return
        if checked.rejection is None:
            self.warned.update({found.code.value for found in checked.violations})
        elif len(self.shown) < _SHOWN:
            self.shown.append(checked)
        room = _LISTED - len(self.listed)
        self.omitted += max(0, len(checked.violations) - room)
        place = checked.place
        self.listed += [
            Finding(
                place.path, place.line, checked.entity, v.field, v.code, v.severity, v.message,
                place.sheet,
            )
            for v in checked.violations[:room]
        ]  # fmt: skip


def print_for_programs(
    checker: Checker,
    found: FindingsList,
    mismatches: Sequence[Mismatch],
    notices: Sequence[str],
) -> None:
    """Print one JSON document: counts, the first 10,000 findings, the notices of standard error."""
    print_json(
        {
            "accepted": dict(checker.accepted),
            "rejected": dict(checker.rejected),
            "codes": {f"{e}.{code}": n for (e, code), n in sorted(checker.codes.items())},
            "unknown_fields": {e: n for e, n in checker.unknown_fields.items() if n},
            "unknown_names": checker.unknown_names.by_entity,
            "mismatches": mismatches,
            "notices": notices,
            "findings": found.listed,
            "findings_omitted": found.omitted,
        }
    )


def print_annotations(found: FindingsList, mismatches: Sequence[Mismatch]) -> None:
    """Print the first 10,000 findings as workflow commands. GitHub shows each beside its line."""
    for one in found.listed:
        sheet = f"sheet {one.sheet}: " if one.sheet else ""
        field = f"{one.field}: " if one.field else ""
        place = f"file={_property(one.path)},line={one.line},title={_property(one.code.value)}"
        say(f"::{one.severity} {place}::{_data(f'{sheet}{field}{one.message}')}")
    for other in mismatches:
        say(f"::error file={_property(other.path)},title=mismatch::{_data(other.message)}")
    if found.omitted:
        say(f"::notice::{count_of(found.omitted, 'finding')} more")


def _data(text: str) -> str:
    return shown(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def print_for_people(checker: Checker, found: FindingsList) -> None:
    """Print tables: the faults in each file, and the verdicts."""
    accepted, rejected = checker.accepted.total(), checker.rejected.total()
    for place, group in groupby(found.shown, lambda checked: _file(checked.place)):
        _print_faults(place, list(group))
    if rejected > len(found.shown):
        more = count_of(rejected - len(found.shown), "rejected record")
        say(f"… and {more} more: --rejected FILE lists them all.")
    print_unknown(checker.unknown_names)
    rows = [(e, checker.accepted[e], checker.rejected[e]) for e in ENTITIES]
    used = [row for row in rows if row[1] or row[2]]
    if used:
        print_table("Verdicts", ("entity", "accepted", "rejected"), used)
    for code, count in sorted(found.warned.items()):
        verb = "lists it" if count == 1 else "lists them"
        say(f"{count} accepted with the warning {code}: --warnings FILE {verb}.", "warning")
    say(f"{accepted} accepted, {rejected} rejected.")


def _file(place: Place) -> str:
    return place.path if place.sheet is None else f"{place.path}, sheet {place.sheet}"


def _print_faults(place: str, records: list[Checked]) -> None:
    rows = []
    styles: list[str] = []
    for checked in records:
        line = str(checked.place.line)
        for found in checked.violations[:_SHOWN_OF_A_RECORD]:
            rows.append((line, found.field, found.code.value, found.message))
            styles.append(found.severity)
            line = ""
        if (more := len(checked.violations) - _SHOWN_OF_A_RECORD) > 0:
            rows.append(("", "", "", f"… and {more} more"))
            styles.append("")
    columns = ("line", "column", "code", "expected")
    print_table(f"Wrong in {place}", columns, rows, whole={"line", "code"}, styles=styles)
