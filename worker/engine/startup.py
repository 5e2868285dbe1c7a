"""Creates and checks the topics before a service starts."""

from __future__ import annotations

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.topics import Names, complaints, largest_value, wanted
from worker.errors import BrokerUnavailable, ConfigurationError, MissingTopic
from worker.stream import Topic


async def create_topics(
    broker: Broker, names: Names, record_limit: int, default: int, asked: int | None = None
) -> tuple[list[str], int]:
    """Create the missing topics; returns their names and the partition count of the inputs.

    New inputs get the partition count of the existing inputs; without any, `asked`, else
    `default`. Raises ConfigurationError, and creates nothing, if `asked` differs from the
    existing count.
    """
    inputs = [names.input(entity) for entity in ENTITIES]
    there = await _described(broker, inputs)
    count = next((there[name].partitions for name in inputs if name in there), asked or default)
    if asked not in (None, count):
        name = next(iter(there))
        raise ConfigurationError(
            f"nothing was changed: {name} has {count} partitions, not {asked}, and keys would move "
            f"between partitions. Leave --partitions out to keep {count}; to have {asked}, create "
            "all topics under a new --prefix and send the records again"
        )
    return await broker.create(wanted(names, count, record_limit).values()), count


async def _described(broker: Broker, names: list[str]) -> dict[str, Topic]:
    """The existing topics; empty if refused: describing takes more rights than creating."""
    try:
        return await broker.topics(names)
    except BrokerUnavailable:
        return {}


async def check_topics(broker: Broker, names: Names, record_limit: int) -> int:
    """The partition count of the inputs, which is the number of tasks.

    Raises ConfigurationError if a topic is missing or has wrong settings: one line that says what
    to change.
    """
    there = await broker.topics(names.every())
    found = list(complaints(names, there, record_limit))
    if found:
        more = f" ({len(found) - 1} more like this)" if len(found) > 1 else ""
        raise ConfigurationError(found[0] + more)
    return there[names.input("users")].partitions


async def message_limit(broker: Broker, names: Names) -> int:
    """The largest value, in bytes, that fits every topic that receives original records.

    Raises MissingTopic if a topic was deleted since the check.
    """
    there = await broker.topics(names.of_originals())
    for name in names.of_originals():
        if name not in there:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    return largest_value(names, there)
