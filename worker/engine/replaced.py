"""Finds inputs that hold other records than those whose copies a task has: of another topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.brokers.contract import Broker
from worker.brokers.truncation import read_span
from worker.core.parked import Envelope
from worker.stream import Message, OffsetRange, Partition


async def replaced_inputs(
    broker: Broker, inputs: Mapping[str, Partition], copies: Sequence[Envelope]
) -> set[str]:
    """The entities whose last copy, by ordinal, is not of the record at its offset in the input.

    For copies that the checkpoint does not know (`SavedState.unknown`): nothing else tells the
    topics apart. If the input was created anew, or has lost its end, no copy is known to be of a
    record in it. An offset before the start of the input says nothing, and matters to nobody.
    Raises BrokerUnavailable, MissingTopic and DamagedLog.
    """
    last: dict[str, Envelope] = {}
    for copy in copies:
        if copy.entity not in last or copy.ordinal > last[copy.entity].ordinal:
            last[copy.entity] = copy
    return {
        entity for entity, copy in last.items() if not await _is_there(broker, inputs[entity], copy)
    }


async def _is_there(broker: Broker, place: Partition, copy: Envelope) -> bool:
    span = await _span(broker, place)
    found: list[Message] = []
    if span.start <= copy.offset < span.end:
        await read_span(broker, place, OffsetRange(copy.offset, copy.offset + 1), found.append)
        span = await _span(broker, place)  # it may have expired meanwhile
    return copy.offset < span.start or any(
        (m.timestamp, m.key, m.value) == (copy.timestamp, copy.key, copy.value) for m in found
    )


async def _span(broker: Broker, place: Partition) -> OffsetRange:
    return (await broker.spans([place], uncommitted=True))[place]
