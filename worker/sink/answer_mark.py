"""How far requests for exports are answered, and which answer was the last.

The group's offsets say how far requests are answered, but not of which log. A topic that loses its
last messages gives their offsets to others, and its next requests would count as answered. So each
last answer is in one transaction with a mark, in the topic of the schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from worker.brokers.contract import Broker
from worker.brokers.truncation import Read, read_span, truncated_at, truncated_partitions
from worker.core.topics import Names
from worker.errors import DamagedLog
from worker.sink.requests import decode_announcement
from worker.stream import Message, OffsetRange, Partition, ProducerRecord

KEY: Final = b":answers"
"""The key of the mark. No schedule has this name."""


class AnswerMark(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of requests and announcements at the last answer.

    `answered` has, by partition of requests, the next offset and the latest append time of those
    that were answered. `last` is the id of the request that was answered last; its announcement is
    at the offset `announced` or later. `requests` and `exports` are the identities of the topics.
    """

    requests: str = ""
    answered: dict[int, tuple[int, int]] = {}
    exports: str = ""
    announced: int = 0
    last: str = ""


class Resumed(NamedTuple):
    """Where a session goes on in the requests, and the partitions that have lost their ends.

    Commit `messages` with the positions, so that each loss is told once.
    """

    positions: dict[Partition, int]
    lost: list[Partition]
    messages: list[ProducerRecord]


def read_mark(value: bytes) -> AnswerMark | None:
    """Decode a mark; None if no sink can have written it. Never raises."""
    try:
        return msgspec.json.decode(value, type=AnswerMark)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class AnswerMarks:
    """The mark of a leadership session, and what it proves of its topics."""

    def __init__(self, names: Names, identities: Mapping[str, str], saved: bytes | None) -> None:
        self.names = names
        requests = identities.get(names.export_requests, "")
        exports = identities.get(names.exports, "")
        mark = read_mark(saved or b"") or AnswerMark()
        if mark.requests != requests:  # created anew: its messages are all new
            mark = replace(mark, requests=requests, answered={})
        if mark.exports != exports:
            mark = replace(mark, exports=exports, announced=0, last="")
        self._mark = mark

    def answered(self, request: Message | None, request_id: str) -> ProducerRecord:
        """The mark to write with the last answer to a request; None stands for that of a slot."""
        answered = dict(self._mark.answered)
        if request is not None:
            _, latest = answered.get(request.partition, (0, 0))
            if request.appended:
                latest = max(latest, request.timestamp)
            answered[request.partition] = request.offset + 1, latest
        self._mark = replace(self._mark, answered=answered, last=request_id)
        return self._message()

    def announced(self, offset: int) -> bool:
        """Note the offset of the last announcement: whether the topic has lost messages before."""
        is_lower = offset < self._mark.announced
        self._mark = replace(self._mark, announced=offset + 1)
        return is_lower

    async def resume(self, broker: Broker, committed: Mapping[Partition, int]) -> Resumed:
        """Compare the mark with its topics; `committed` has the group's offsets of requests.

        Group's offsets beyond the mark prove that it is not the last one. Those before it were
        lost. Raises BrokerUnavailable and DamagedLog.
        """
        topic, answered = self.names.export_requests, dict(self._mark.answered)
        positions, lost = dict(committed), set[Partition]()
        read: dict[Partition, Read] = {}
        for number, (position, latest) in self._mark.answered.items():
            partition = Partition(topic, number)
            if committed.get(partition, 0) > position:
                lost.add(Partition(self.names.schedules, 0))
                del answered[number]
                continue
            positions[partition] = position
            read[partition] = Read(position, latest)
        truncated = await truncated_partitions(broker, read)
        spans = await broker.spans(truncated, uncommitted=True)
        for partition in truncated:
            latest = read[partition].latest
            end = await truncated_at(broker, partition, spans[partition], latest)
            positions[partition], answered[partition.number] = end, (end, latest)
            lost.add(partition)
        self._mark = replace(self._mark, answered=answered)
        if await self._last_is_gone(broker):
            self._mark = replace(self._mark, announced=0, last="")
            lost.add(Partition(self.names.exports, 0))
        return Resumed(positions, sorted(lost), [self._message()] if lost else [])

    def _message(self) -> ProducerRecord:
        value = msgspec.json.encode(self._mark)
        return ProducerRecord(self.names.schedules, KEY, value, partition=0)

    async def _last_is_gone(self, broker: Broker) -> bool:
        place, mark = Partition(self.names.exports, 0), self._mark
        span = (await broker.spans([place], uncommitted=True))[place]
        if not mark.last or span.start > mark.announced:
            return False
        if span.end < mark.announced:
            return True
        found: list[str] = []

        def see(message: Message) -> None:
            said = decode_announcement(message.value)
            if said is not None and said.status in ("finished", "failed"):
                found.append(said.request_id)

        try:
            await read_span(broker, place, OffsetRange(mark.announced, span.end), see)
        except DamagedLog:
            return False
        return mark.last not in found
