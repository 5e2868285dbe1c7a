"""Reads chosen rejections from their topics, and the original records in them."""

from __future__ import annotations

from base64 import b64decode
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.rejection import Rejection, original
from worker.desk.queries import Candidate
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Headers, Message, Partition

_FAR: Final = 2_000
"""Offsets that are rather passed over than read."""
_PATIENCE: Final = 20.0


class _Stored(Rejection, frozen=True, kw_only=True):
    """A rejection as a worker writes it.

    Without its record, the rejection of another program would be taken for that of a deletion.
    """

    record: msgspec.Raw
    message_key_base64: str | None
    headers: list[tuple[str, str]]


_decode = msgspec.json.Decoder(_Stored).decode


class Original(NamedTuple):
    """A record as it was sent, and its rejection. A deletion has no value."""

    rejection: Rejection
    key: bytes | None
    value: bytes | None
    headers: Headers
    partition: int
    offset: int


def read_original(message: Message) -> Original | None:
    """The original in the message of a rejection; None if the message is none. Pure."""
    try:
        rejection = _decode(message.value or b"")
        partition, offset = rejection.source["partition"], rejection.source["offset"]
        key = rejection.message_key_base64
        headers: Headers = tuple((name, b64decode(value)) for name, value in rejection.headers)
        message_key, value = None if key is None else b64decode(key), original(rejection)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, LookupError):
        return None
    except TypeError:  # the source is no object
        return None
    if rejection.entity not in ENTITIES or not isinstance(partition, int):
        return None
    return Original(rejection, message_key, value, headers, partition, offset)


async def read_messages(broker: Broker, chosen: Sequence[Candidate]) -> AsyncIterator[Message]:
    """The messages of these rejections that are still there; those of a partition in their order.

    Raises BrokerUnavailable, DamagedLog.
    """
    wanted: defaultdict[Partition, list[int]] = defaultdict(list)
    for candidate in chosen:
        wanted[candidate.partition].append(candidate.offset)
    reader = broker.reader()
    try:
        for partition, offsets in wanted.items():
            left = sorted(offsets, reverse=True)
            reader.assign({partition: left[-1]})
            while left:
                if left[-1] > reader.position(partition) + _FAR:
                    reader.assign({partition: left[-1]})
                messages = await reader.read(_FAR, _PATIENCE)
                for message in messages:
                    while left and left[-1] < message.offset:
                        left.pop()
                    if left and left[-1] == message.offset:
                        left.pop()
                        yield message
                while left and left[-1] < reader.position(partition):
                    left.pop()
                if left and not messages:
                    for line in reader.damaged().values():
                        raise DamagedLog(line)
                    raise BrokerUnavailable(
                        f"{partition.topic}/{partition.number} has given nothing from offset"
                        f" {reader.position(partition)} on for {_PATIENCE:.0f} s"
                    )
    finally:
        await reader.close()


async def read_message(broker: Broker, coordinate: str, patience: float) -> Message | None:
    """The message at a coordinate; None if it is gone, or does not come for so many seconds.

    Raises BrokerUnavailable.
    """
    topic, number, offset = coordinate.rsplit("/", 2)
    partition, position = Partition(topic, int(number)), int(offset)
    reader = broker.reader()
    reader.assign({partition: position})
    try:
        for message in await reader.read(1, patience):
            if message.offset == position:
                return message
    finally:
        await reader.close()
    return None
