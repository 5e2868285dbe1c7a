"""What is made and checked before a service starts."""

from __future__ import annotations

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.topics import Names, complaints, largest_value, wanted
from worker.errors import BrokerUnavailable, ConfigurationError, MissingTopic
from worker.stream import Topic


async def create_topics(
    broker: Broker, names: Names, record_limit: int, default: int, asked: int | None = None
) -> tuple[list[str], int]:
    """Create the topics that are missing: their names, and how many partitions inputs have.

    Where an input exists already, the others get as many; else `asked`, else `default`. Raises
    ConfigurationError, with nothing created, if `asked` is another number than inputs have.
    """
    inputs = [names.inputs(entity) for entity in ENTITIES]
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
    """Those that exist, as far as this user may know: creating takes fewer rights than asking."""
    try:
        return await broker.topics(names)
    except BrokerUnavailable:
        return {}


async def check_topics(broker: Broker, names: Names, record_limit: int) -> int:
    """The number of partitions of the inputs, and so of tasks.

    Raises ConfigurationError if the topics are not as the rest relies on, with one line that says
    what to change.
    """
    there = await broker.topics(names.every())
    found = list(complaints(names, there, record_limit))
    if found:
        more = f" ({len(found) - 1} more like this)" if len(found) > 1 else ""
        raise ConfigurationError(found[0] + more)
    return there[names.inputs("users")].partitions


async def message_limit(broker: Broker, names: Names) -> int:
    """The size of a value that every topic takes to which a task writes records as they were.

    Raises MissingTopic: one may have been deleted since it was checked.
    """
    there = await broker.topics(names.of_originals())
    for name in names.of_originals():
        if name not in there:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    return largest_value(names, there)
