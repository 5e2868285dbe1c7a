"""What is checked before a service starts."""

from __future__ import annotations

from worker.brokers.contract import Broker
from worker.errors import ConfigurationError
from worker.topics import Names, complaints


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
