"""`POST /v1/check/{entity}`: judges records without sending them.

References and the uniqueness of addresses are not looked up: the answer says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from worker.core.decode import Decoded, Deletion, RecordDecoder, decoders, latest_moment
from worker.core.references import unexpected
from worker.core.violations import Code, Violation, violation
from worker.errors import BuddyError
from worker.files import FileRecord
from worker.http.body import Uploads
from worker.http.parameters import entity_of
from worker.http.problems import Problem, problem_of

MOST_LISTED: Final = 1_000
"""The records with violations that one answer lists; the others are counted."""


class CheckedRecord(msgspec.Struct, frozen=True):
    """A record with violations. `line` is where it begins in the body."""

    line: int
    verdict: str
    key: str | None
    violations: tuple[Violation, ...]


class CheckReport(msgspec.Struct):
    """What sending the records would give. Records without violations are only counted."""

    entity: str
    valid: int = 0
    rejected: int = 0
    records: list[CheckedRecord] = []
    records_unlisted: int = 0
    not_checked: tuple[str, ...] = ("references", "unique addresses")


class RecordChecker:
    """The endpoint that judges."""

    def __init__(self, record_limit: int, skew_seconds: float, uploads: Uploads) -> None:
        self._limit = record_limit
        self._skew = skew_seconds
        self._uploads = uploads
        self._decoders = decoders(record_limit)

    async def post(self, request: Request) -> Response:
        """The violations of the records in the body. 200, whatever they are."""
        entity = entity_of(request)
        report = CheckReport(entity, records=[])
        decoder = self._decoders[entity]
        try:
            async with self._uploads.batches(request, entity, self._limit) as batches:
                async for batch in batches:
                    await asyncio.to_thread(self._check_all, decoder, batch, report)
        except BuddyError as error:
            raise problem_of(error) from None
        if not report.valid + report.rejected:
            raise Problem(400, "empty_body", "the body holds no record")
        return Response(msgspec.json.encode(report), media_type="application/json")

    def _check_all(
        self, decoder: RecordDecoder, batch: Sequence[FileRecord], report: CheckReport
    ) -> None:
        latest = latest_moment(time.time_ns() // 1_000_000, self._skew)
        for record in batch:
            self._check(decoder, record, latest, report)

    def _check(
        self, decoder: RecordDecoder, record: FileRecord, latest: Any, report: CheckReport
    ) -> None:
        key: bytes | None = None
        found: tuple[Violation, ...]
        try:
            if record.oversize:
                text = f"expected at most {self._limit} bytes"
                is_valid, found = False, (violation(Code.MALFORMED_RECORD, "", text),)
            else:
                outcome = decoder.decode(record.value, None, latest)
                is_valid = isinstance(outcome, Decoded)
                key = outcome.key
                assert not isinstance(outcome, Deletion)  # a body holds none
                found = outcome.warnings if isinstance(outcome, Decoded) else outcome.violations
        except Exception:  # noqa: BLE001 -- one record never stops the check
            is_valid, found = False, (unexpected(),)
        report.valid += is_valid
        report.rejected += not is_valid
        if not found:
            return
        if len(report.records) < MOST_LISTED:
            verdict = "valid" if is_valid else "rejected"
            report.records.append(
                CheckedRecord(record.line, verdict, key.decode() if key else None, found)
            )
        else:
            report.records_unlisted += 1
