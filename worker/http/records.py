"""Records in: `POST /v1/records/{entity}`, `DELETE /v1/records/{entity}/{key}`.

A record counts as sent once the broker has it durably. What was sent before an error stays sent;
the problem details say how much that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Literal

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.keys import form_of, read_key
from worker.core.sending import KeyReader
from worker.core.topics import Names
from worker.errors import BuddyError, MessageRefused, MissingTopic
from worker.files import FileRecord
from worker.http.body import Uploads
from worker.http.parameters import caller_of, entity_of, wait_of
from worker.http.problems import Problem, problem_of
from worker.http.sending import SendingWatch
from worker.http.verdicts import Verdict, VerdictWatch, VerdictWatches
from worker.stream import ProducerRecord

MOST_LISTED: Final = 10_000
"""The records of one request whose coordinates and verdicts are listed; the others are counted."""
_MOST_REFUSED: Final = 1_000

_log = structlog.get_logger(__name__)


class RefusedRecord(msgspec.Struct, frozen=True):
    """A record that was not sent. `line` is where it begins in the body, `size` its bytes."""

    line: int
    size: int
    code: Literal["record_too_large"] = "record_too_large"


class SentRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record that was sent. `verdict` and what follows is there if the request waits for it.

    `pending`: the record is parked, or no worker has read it yet. `lost`: the input was deleted or
    created anew since the request began, so nobody can tell the verdict.
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
    refused: list[RefusedRecord] = []
    refused_unlisted: int = 0
    accepted: int | msgspec.UnsetType = msgspec.UNSET
    rejected: int | msgspec.UnsetType = msgspec.UNSET
    pending: int | msgspec.UnsetType = msgspec.UNSET
    lost: int | msgspec.UnsetType = msgspec.UNSET
    records: list[SentRecord] = []
    records_unlisted: int = 0


class RecordSender:
    """The endpoints that send."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        uploads: Uploads,
        verdicts: VerdictWatches,
        sending: SendingWatch,
    ) -> None:
        self._broker = broker
        self._names = names
        self._uploads = uploads
        self._verdicts = verdicts
        self._sending = sending
        self._keys = {name: KeyReader(entity) for name, entity in ENTITIES.items()}

    async def post(self, request: Request) -> Response:
        """Send the records of the body. 202, or 200 if it waited and all have a verdict."""
        entity = entity_of(request)
        seconds = wait_of(request)
        limit = await self._limit(entity)
        report = _Report(entity)
        async with AsyncExitStack() as stack:
            watch = None
            if seconds:
                watch = await stack.enter_async_context(self._verdicts.watch(entity))
            batches = await stack.enter_async_context(self._uploads.batches(request, entity, limit))
            try:
                async for batch in batches:
                    await self._send(entity, batch, limit, watch, report)
            except Problem as problem:
                problem.members |= report.members()
                raise
            except BuddyError as error:
                self._sending.failed(error)
                raise problem_of(error, report.members()) from None
            finally:
                if report.sent:
                    caller = caller_of(request).name
                    _log.info("records_sent", caller=caller, entity=entity, count=report.sent)
            if not report.sent and not report.refused_count:
                raise Problem(400, "empty_body", "the body holds no record")
            if watch is not None:
                await watch.wait(seconds)
        return report.answer(watch)

    async def delete(self, request: Request) -> Response:
        """Send the deletion of a key. 202, or 200 if it waited and there is a verdict."""
        entity = entity_of(request)
        seconds = wait_of(request)
        key = read_key(ENTITIES[entity], request.path_params["key"].encode())
        if key is None:
            raise Problem(400, "malformed_key", f"this is no key: {form_of(ENTITIES[entity])}")
        report = _Report(entity)
        message = ProducerRecord(self._names.input(entity), key, None)
        async with AsyncExitStack() as stack:
            watch = None
            if seconds:
                watch = await stack.enter_async_context(self._verdicts.watch(entity))
            try:
                await self._publish([message], [1], watch, report)
            except BuddyError as error:
                self._sending.failed(error)
                raise problem_of(error) from None
            _log.info("deletion_sent", caller=caller_of(request).name, entity=entity)
            if watch is not None:
                await watch.wait(seconds)
        return report.answer(watch)

    async def _limit(self, entity: str) -> int:
        topic = self._names.input(entity)
        try:
            topics = await self._broker.topics([topic])
            if topic not in topics:
                raise MissingTopic(f"topic {topic} is missing: run 'buddy topics create'")
        except BuddyError as error:
            raise problem_of(error) from None
        return topics[topic].max_message_bytes

    async def _send(
        self,
        entity: str,
        batch: Sequence[FileRecord],
        limit: int,
        watch: VerdictWatch | None,
        report: _Report,
    ) -> None:
        topic, read_key_of = self._names.input(entity), self._keys[entity].read
        messages: list[ProducerRecord] = []
        lines: list[int] = []
        for record in batch:
            key = read_key_of(record.value)
            size = record.oversize or len(record.value)
            if record.oversize or size + len(key or b"") > limit:
                report.refuse(RefusedRecord(record.line, size))
            else:
                messages.append(ProducerRecord(topic, key, record.value))
                lines.append(record.line)
        if not messages:
            return
        try:
            await self._publish(messages, lines, watch, report)
        except MessageRefused as error:
            if not error.refused:
                raise
            # Kafka counts some bytes of its own. It has sent nothing, or what is sent again now.
            for index in error.refused:
                report.refuse(RefusedRecord(lines[index], len(messages[index].value or b"")))
            left = [n for n in range(len(messages)) if n not in error.refused]
            if left:
                good, at = [messages[n] for n in left], [lines[n] for n in left]
                await self._publish(good, at, watch, report)

    async def _publish(
        self,
        messages: Sequence[ProducerRecord],
        lines: Sequence[int],
        watch: VerdictWatch | None,
        report: _Report,
    ) -> None:
        if watch is None:
            report.add(lines, self._coordinates(messages, await self._broker.publish(messages)))
            return
        async with watch.sending():
            coordinates = self._coordinates(messages, await self._broker.publish(messages))
            watch.expect(coordinates[: report.room()])
        report.add(lines, coordinates)

    def _coordinates(
        self, messages: Sequence[ProducerRecord], places: Sequence[tuple[int, int]]
    ) -> list[str]:
        topic = messages[0].topic
        return [f"{topic}/{number}/{offset}" for number, offset in places]


class _Report:
    """Collects what became of the records of one request."""

    def __init__(self, entity: str) -> None:
        self.sent = 0
        self.refused_count = 0
        self._entity = entity
        self._refused: list[RefusedRecord] = []
        self._listed: list[tuple[int, str]] = []
        self._last_line: int | None = None

    def room(self) -> int:
        """How many more records can be listed."""
        return MOST_LISTED - len(self._listed)

    def refuse(self, record: RefusedRecord) -> None:
        """Add a record that is too large to be sent."""
        self.refused_count += 1
        if len(self._refused) < _MOST_REFUSED:
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
            self._refused,
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
        report.pending, report.lost = (0, others) if watch.is_lost else (others, 0)
        status = 202 if without in of else 200
        return Response(msgspec.json.encode(report), status, media_type="application/json")


def _judged(
    line: int, coordinate: str, verdict: Verdict | None, without: Literal["pending", "lost"]
) -> SentRecord:
    if verdict is None:
        return SentRecord(line, coordinate, without)
    if verdict.verdict == "rejected":
        return SentRecord(line, coordinate, "rejected", verdict.violations)
    return SentRecord(line, coordinate, "accepted", None, verdict.warnings)
