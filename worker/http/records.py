"""Records in: `POST /v1/records/{entity}`, `DELETE /v1/records/{entity}/{key}`.

A record counts as sent once the broker has it durably. What was sent before an error stays sent;
the problem details say how much that is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

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
from worker.http.broker_watch import BrokerWatch
from worker.http.keyed import KeyedRequest, KeyedRequests, NumberedRecord, key_of
from worker.http.metrics import HttpMetrics
from worker.http.parameters import caller_of, entity_of, producer_of, wait_of
from worker.http.problems import Problem, problem_of
from worker.http.send_report import RefusedRecord, SendTally
from worker.http.verdicts import VerdictWatch, VerdictWatches
from worker.stream import Headers, ProducerRecord

_log = structlog.get_logger(__name__)


class RecordSender:
    """The endpoints that send."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        uploads: Uploads,
        verdicts: VerdictWatches,
        keyed: KeyedRequests,
        broker_watch: BrokerWatch,
        metrics: HttpMetrics,
    ) -> None:
        self._broker = broker
        self._names = names
        self._uploads = uploads
        self._verdicts = verdicts
        self._keyed = keyed
        self._broker_watch = broker_watch
        self._metrics = metrics
        self._keys = {name: KeyReader(entity) for name, entity in ENTITIES.items()}

    async def post(self, request: Request) -> Response:
        """Send the records of the body. 202, or 200 if it waited and all have a verdict."""
        entity = entity_of(request)
        seconds = wait_of(request)
        key = key_of(request, entity)
        headers = producer_of(request)
        limit = await self._limit(entity)
        topic = self._names.input(entity)
        # Requests with a key need more of the broker: others may pass while they cannot.
        path = topic if key is None else f"{topic} with a key"
        tally = SendTally(entity)
        async with AsyncExitStack() as stack:
            batches = await stack.enter_async_context(self._uploads.batches(request, entity, limit))
            keyed = watch = None
            try:
                if key is not None:
                    keyed = await stack.enter_async_context(self._keyed.begin(key, entity))
                if seconds:
                    earlier = None if keyed is None else keyed.sent_before
                    watch = await stack.enter_async_context(self._verdicts.watch(entity, earlier))
            except BuddyError as error:
                self._broker_watch.failed(path, error)
                raise problem_of(error) from None
            sending = _Sending(self._broker, topic, tally, watch, keyed, headers)
            try:
                async for batch in batches:
                    await sending.send(batch, self._keys[entity].read, limit)
                sending.finish()
                if tally.new:
                    self._broker_watch.sent(path)
            except Problem as problem:
                problem.members |= tally.members()
                raise
            except BuddyError as error:
                self._broker_watch.failed(path, error)
                raise problem_of(error, tally.members()) from None
            finally:
                self._metrics.records(entity, tally.new, tally.refused_count)
                if tally.new:
                    caller = caller_of(request).name
                    _log.info("records_sent", caller=caller, entity=entity, count=tally.new)
            if not tally.sent and not tally.refused_count:
                raise Problem(400, "empty_body", "the body holds no record")
            if watch is not None:
                await watch.wait(seconds)
        return tally.answer(watch)

    async def delete(self, request: Request) -> Response:
        """Send the deletion of a key. 202, or 200 if it waited and there is a verdict."""
        entity = entity_of(request)
        seconds = wait_of(request)
        key = read_key(ENTITIES[entity], request.path_params["key"].encode())
        if key is None:
            raise Problem(400, "malformed_key", f"this is no key: {form_of(ENTITIES[entity])}")
        topic = self._names.input(entity)
        record = ProducerRecord(topic, key, None, producer_of(request))
        tally = SendTally(entity)
        async with AsyncExitStack() as stack:
            watch = None
            if seconds:
                watch = await stack.enter_async_context(self._verdicts.watch(entity))
            sending = _Sending(self._broker, topic, tally, watch)
            try:
                await sending.publish([NumberedRecord(0, 1, record)])
            except BuddyError as error:
                self._broker_watch.failed(topic, error)
                raise problem_of(error) from None
            self._broker_watch.sent(topic)
            self._metrics.records(entity, tally.sent, 0)
            _log.info("deletion_sent", caller=caller_of(request).name, entity=entity)
            if watch is not None:
                await watch.wait(seconds)
        return tally.answer(watch)

    async def _limit(self, entity: str) -> int:
        topic = self._names.input(entity)
        try:
            topics = await self._broker.topics([topic])
            if topic not in topics:
                raise MissingTopic(f"topic {topic} is missing: run 'buddy topics create'")
        except BuddyError as error:
            raise problem_of(error) from None
        return topics[topic].max_message_bytes


class _Sending:
    """Sends the records of one request, and counts them.

    `watch` gets to know their coordinates. With `keyed`, records are not sent that were sent
    before. `headers` go with each record.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        tally: SendTally,
        watch: VerdictWatch | None,
        keyed: KeyedRequest | None = None,
        headers: Headers = (),
    ) -> None:
        self._broker = broker
        self._topic = topic
        self._tally = tally
        self._watch = watch
        self._keyed = keyed
        self._headers = headers
        if keyed is not None:
            tally.go_on(keyed.before.sent, keyed.before.read - keyed.before.sent)

    async def send(
        self, batch: Sequence[FileRecord], read_key_of: Callable[[bytes], bytes | None], limit: int
    ) -> None:
        """Send the next batch of the body. Refuses records of more than `limit` bytes."""
        first = 0
        if self._keyed is not None:
            known, batch = self._keyed.split(batch)
            first = self._keyed.read - len(batch)
            for number, record in enumerate(known, first - len(known)):
                self._repeat(number, record)
            if known and first == self._keyed.before.read:
                self._tally.reach(known[-1].line)
        outgoing = []
        for number, record in enumerate(batch, first):
            key = read_key_of(record.value)
            size = record.oversize or len(record.value)
            if record.oversize or size + len(key or b"") > limit:
                self._refuse(number, record.line, size)
            else:
                message = ProducerRecord(self._topic, key, record.value, self._headers)
                outgoing.append(NumberedRecord(number, record.line, message))
        while outgoing:
            try:
                await self.publish(outgoing)
                return
            except MessageRefused as error:
                if not error.refused:
                    raise
                # A broker counts some bytes of its own. It has sent nothing.
                for index in error.refused:
                    number, line, message = outgoing[index]
                    self._refuse(number, line, len(message.value or b""))
                outgoing = [one for n, one in enumerate(outgoing) if n not in error.refused]

    async def publish(self, outgoing: Sequence[NumberedRecord]) -> None:
        """Send these records, and expect their verdicts."""
        if self._watch is None:
            await self._write(outgoing)
            return
        async with self._watch.sending():
            coordinates = await self._write(outgoing)
            self._watch.expect(coordinates)

    def finish(self) -> None:
        """The body has ended. Raises Problem 422 if it is another one than that of its key."""
        if self._keyed is not None:
            self._keyed.finish()

    async def _write(self, outgoing: Sequence[NumberedRecord]) -> Sequence[str]:
        """Send these records; the coordinates of those that are listed."""
        room = self._tally.room()
        if self._keyed is not None:
            places = await self._keyed.write(outgoing, listed=room > 0)
        else:
            places = await self._broker.publish([one.message for one in outgoing])
        coordinates = [f"{self._topic}/{number}/{offset}" for number, offset in places]
        self._tally.add([one.line for one in outgoing], coordinates)
        return coordinates[:room]

    def _repeat(self, number: int, record: FileRecord) -> None:
        """List a record that was sent or refused before."""
        assert self._keyed is not None
        if number in self._keyed.refused:
            size = record.oversize or len(record.value)
            self._tally.refuse(RefusedRecord(record.line, size), repeated=True)
        else:
            self._tally.repeat(record.line, self._keyed.places.get(number))

    def _refuse(self, number: int, line: int, size: int) -> None:
        if self._keyed is not None:
            self._keyed.refuse(number)
        self._tally.refuse(RefusedRecord(line, size))
