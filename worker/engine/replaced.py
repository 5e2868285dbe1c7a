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
    spans = await broker.spans([inputs[entity] for entity in last], uncommitted=True)
    replaced = set()
    for entity, copy in last.items():
        span = spans[inputs[entity]]
        if copy.offset >= span.start and not await _is_there(broker, inputs[entity], span, copy):
            replaced.add(entity)
    return replaced


async def _is_there(broker: Broker, place: Partition, span: OffsetRange, copy: Envelope) -> bool:
    if copy.offset >= span.end:
        return False
    found: list[Message] = []
    at = OffsetRange(copy.offset, copy.offset + 1)
    await read_span(broker, place, at, found.append)
    return any(
        (m.timestamp, m.key, m.value) == (copy.timestamp, copy.key, copy.value) for m in found
    )
