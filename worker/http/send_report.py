"""What became of the records of one request: the answer, or the members of its problem details."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final, Literal

import msgspec
from starlette.responses import Response

from worker.http.verdicts import Verdict, VerdictWatch

MOST_LISTED: Final = 10_000
"""The records of one request whose coordinates and verdicts are listed; the others are counted."""
MOST_REFUSED: Final = 1_000
"""The refused records of one request that are listed."""


class RefusedRecord(msgspec.Struct, frozen=True):
    """A record that was not sent. `line` is where it begins in the body, `size` its bytes."""

    line: int
    size: int
    code: Literal["record_too_large"] = "record_too_large"


class SentRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record that was sent. `verdict` and what follows is there if the request waits for it.

    `pending`: the record is parked, or no worker has read it yet. `lost`: the input was deleted or
    created anew since the request began, so nobody can tell the verdict. A rejected record has
    `violations`, but beyond 4 MiB of them in one answer.
    """

    line: int
    coordinate: str
    verdict: Literal["accepted", "rejected", "pending", "lost"] | None = None
    violations: msgspec.Raw | None = None
    warnings: tuple[str, ...] = ()


class SendReport(msgspec.Struct):
    """What became of a request. All but the lists are numbers of records.

    Verdicts are counted if the request waits for them; the unlisted records count as pending.
    If the input was created anew, all records count as lost.
    """

    entity: str
    sent: int
    repeated: int | msgspec.UnsetType = msgspec.UNSET
    """Of `sent`: what requests before with the same `Idempotency-Key` had sent."""
    refused: list[RefusedRecord] = []
    refused_unlisted: int = 0
    accepted: int | msgspec.UnsetType = msgspec.UNSET
    rejected: int | msgspec.UnsetType = msgspec.UNSET
    pending: int | msgspec.UnsetType = msgspec.UNSET
    lost: int | msgspec.UnsetType = msgspec.UNSET
    violations_unlisted: int | msgspec.UnsetType = msgspec.UNSET
    """Of `rejected`: how many are listed without their violations."""
    records: list[SentRecord] = []
    records_unlisted: int = 0


class SendTally:
    """Collects what became of the records of one request."""

    def __init__(self, entity: str) -> None:
        self.sent = 0
        self.refused_count = 0
        self.repeated: int | msgspec.UnsetType = msgspec.UNSET
        self._entity = entity
        self._refused: list[RefusedRecord] = []
        self._listed: list[tuple[int, str]] = []
        self._last_line: int | None = None

    @property
    def new(self) -> int:
        """How many records this request has sent, without what requests before had."""
        return self.sent - (self.repeated or 0)

    def room(self) -> int:
        """How many more records can be listed."""
        return MOST_LISTED - len(self._listed)

    def go_on(self, sent: int, refused: int) -> None:
        """Count what requests before have sent and refused. `repeat` and `refuse` list it."""
        self.sent = self.repeated = sent
        self.refused_count = refused

    def repeat(self, line: int, coordinate: str | None) -> None:
        """List a record that a request before has sent, if its coordinate is known."""
        if coordinate is not None and self.room():
            self._listed.append((line, coordinate))

    def reach(self, line: int) -> None:
        """All that requests before have sent is listed: it ends in this line."""
        self._last_line = line

    def refuse(self, record: RefusedRecord, *, repeated: bool = False) -> None:
        """Add a record that is too large to be sent; one `repeated` is counted already."""
        self.refused_count += not repeated
        if len(self._refused) < MOST_REFUSED:
            self._refused.append(record)

    def add(self, lines: Sequence[int], coordinates: Sequence[str]) -> None:
        """Add records that were sent."""
        self.sent += len(coordinates)
        self._last_line = lines[-1]
        room = self.room()
        self._listed += zip(lines[:room], coordinates[:room], strict=True)

    def members(self) -> dict[str, object]:
        """What was sent before an error, as members of its problem details."""
        members: dict[str, object] = {"sent": self.sent, "refused": self.refused_count}
        return members | ({} if self._last_line is None else {"last_line": self._last_line})

    def answer(self, watch: VerdictWatch | None) -> Response:
        """The response: with verdicts, if the request waited for them."""
        report = SendReport(
            self._entity,
            self.sent,
            self.repeated,
            sorted(self._refused, key=attrgetter("line")),
            self.refused_count - len(self._refused),
            records_unlisted=self.sent - len(self._listed),
        )
        if watch is None:
            report.records = [SentRecord(line, at) for line, at in self._listed]
            return Response(msgspec.json.encode(report), 202, media_type="application/json")
        without: Literal["pending", "lost"] = "lost" if watch.is_lost else "pending"
        report.records = [_judged(n, at, watch.found.get(at), without) for n, at in self._listed]
        of = [record.verdict for record in report.records]
        accepted, rejected = of.count("accepted"), of.count("rejected")
        others = self.sent - accepted - rejected
        report.accepted, report.rejected = accepted, rejected
        listed = sum(record.violations is not None for record in report.records)
        report.violations_unlisted = rejected - listed
        report.pending, report.lost = (0, others) if watch.is_lost else (others, 0)
        is_final = without not in of and (watch.is_final or not rejected)
        status = 200 if is_final else 202
        return Response(msgspec.json.encode(report), status, media_type="application/json")


def _judged(
    line: int, coordinate: str, verdict: Verdict | None, without: Literal["pending", "lost"]
) -> SentRecord:
    if verdict is None:
        return SentRecord(line, coordinate, without)
    if verdict.verdict == "rejected":
        return SentRecord(line, coordinate, "rejected", verdict.violations)
    return SentRecord(line, coordinate, "accepted", None, verdict.warnings)
