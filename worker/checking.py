"""`buddy check`: the verdicts of the contract on files, without a broker.

Entities come in the order of the specification: every user is known before the first match is
judged, and every match before the rest. So all references are judged as if at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from worker.core.decode import Decoded, Deletion, Invalid, RecordDecoder, decoders, latest_moment
from worker.core.keys import id_bytes
from worker.core.references import missing, rejects, unexpected, verdict
from worker.core.rejection import OmittedRecord, reject
from worker.core.unknown import UnknownNames
from worker.core.violations import Code, Violation, violation
from worker.files.records import FileRecord, Place
from worker.index.memory import MemoryIndex
from worker.stream import Message

_REFERRED: Final = frozenset({"users", "matches"})
"""The entities that others refer to."""


class Checked(msgspec.Struct, frozen=True, gc=False):
    """One record with its verdict: its canonical row, or its rejection as JSON."""

    entity: str
    place: Place
    key: str | None
    row: bytes | None
    rejection: bytes | None
    violations: tuple[Violation, ...]


class Warned(msgspec.Struct, frozen=True):
    """A line of `--warnings`: an accepted record with its warnings."""

    entity: str
    key: str | None
    source: Place
    violations: tuple[Violation, ...]


class Checker:
    """Judges records one after the other. Later records may refer to rows accepted before."""

    def __init__(self, clock: Callable[[], int], skew_seconds: float, limit: int) -> None:
        self.accepted: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.codes: Counter[tuple[str, str]] = Counter()
        self.unknown_fields: Counter[str] = Counter()
        self.unknown_names = UnknownNames()
        self._clock = clock
        self._skew = skew_seconds
        self._limit = limit
        self._decoders = decoders(limit)
        self._known = MemoryIndex()
        self._now, self._latest = 0, latest_moment(0, skew_seconds)

    def check(self, records: Iterable[FileRecord]) -> Iterator[Checked]:
        """The verdict of each record, in their order. Records must be in the order of entities."""
        for record in records:
            yield self._check(record)

    def _check(self, record: FileRecord) -> Checked:
        now = self._clock()
        decoder = self._decoders[record.entity]
        outcome: Decoded | Deletion | Invalid
        violations: tuple[Violation, ...] = ()
        own = b""
        try:
            outcome = self._decode(decoder, record, now)
            if isinstance(outcome, Decoded):
                users, matches = missing(outcome, self._known)
                if record.entity in _REFERRED:
                    own = id_bytes(outcome.key.decode())
                address = outcome.address
                taken = address is not None and self._known.taken(address, own)
                violations = outcome.warnings
                if users or matches or taken or outcome.attendees:
                    violations = verdict(decoder, outcome, self._known, users, matches, taken=taken)
                    if rejects(violations):
                        outcome = Invalid(outcome.key, violations)
        except Exception:  # noqa: BLE001 -- one record never stops the check
            outcome = Invalid(None, (unexpected(),), malformed=True)
        if isinstance(outcome, Decoded):
            if own:
                self._known.learn(record.entity, own, outcome.address)  # type: ignore[arg-type]
            return self._accept(record, outcome, violations)
        assert isinstance(outcome, Invalid)  # a file holds no deletions
        return self._reject(record, outcome, now)

    def _decode(
        self, decoder: RecordDecoder, record: FileRecord, now: int
    ) -> Decoded | Deletion | Invalid:
        if record.oversize:
            text = f"expected at most {self._limit} bytes"
            found = (violation(Code.MALFORMED_RECORD, "", text),)
            return Invalid(None, found, malformed=True)
        if record.fault is not None:
            found = (violation(Code.MALFORMED_RECORD, "", record.fault),)
            return Invalid(None, found, malformed=True)
        if now != self._now:
            self._now, self._latest = now, latest_moment(now, self._skew)
        return decoder.decode(record.value, None, self._latest)

    def _accept(
        self, record: FileRecord, row: Decoded, violations: tuple[Violation, ...]
    ) -> Checked:
        entity = record.entity
        self.accepted[entity] += 1
        if row.unknown_fields:
            self.unknown_fields[entity] += row.unknown_fields
            self.unknown_names.note(entity, row.unknown_names)
        if violations:
            self._count(entity, violations)
        return Checked(entity, record.place, row.key.decode(), row.row, None, violations)

    def _reject(self, record: FileRecord, invalid: Invalid, now: int) -> Checked:
        self.rejected[record.entity] += 1
        self.unknown_names.note(record.entity, invalid.unknown_names)
        self._count(record.entity, invalid.violations)
        message = Message(record.path, 0, record.line, now, None, record.value)
        place = record.place
        omitted = None
        if record.oversize:
            omitted = OmittedRecord(record.oversize, record.sha256 or "")
        rejection, _ = reject(record.entity, message, invalid, now, self._limit * 2, place, omitted)
        key = None if invalid.key is None else invalid.key.decode()
        return Checked(record.entity, place, key, None, rejection, invalid.violations)

    def _count(self, entity: str, violations: tuple[Violation, ...]) -> None:
        for code in {found.code for found in violations}:
            self.codes[entity, code.value] += 1
