"""A worker as a writer: one transactional producer for all of its tasks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence

from worker.brokers.contract import Broker, Committer
from worker.core.ownership import writer_name
from worker.core.topics import Names
from worker.errors import BrokerUnavailable
from worker.stream import Partition, ProducerRecord

GROUP = "worker"


def group_of(names: Names) -> str:
    """The workers' group."""
    return f"{names.prefix}-{GROUP}"


class Session:
    """Serialises commits until the first commit that fails.

    Any failure ends the session, because the log may or may not contain the decisions. Then open
    a new session, which takes the tasks over from this one. A session name is never reused, so
    one fence is final.
    """

    def __init__(self, broker: Broker, names: Names) -> None:
        self.owner = uuid.uuid4().hex
        self.is_over = False
        self._broker = broker
        self._names = names
        self._committer: Committer | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Start the committer. Raises BrokerUnavailable."""
        self._committer = await self._broker.committer(
            writer_name(self._names, self.owner), group_of(self._names)
        )

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        """As `Committer.commit`, after all earlier commits. Raises BrokerUnavailable once over."""
        async with self._turn:
            if self.is_over or self._committer is None:
                raise BrokerUnavailable("an earlier commit of this worker has failed")
            try:
                return await self._committer.commit(messages, offsets)
            except BaseException:
                self.is_over = True
                raise

    async def close(self) -> None:
        """Close the committer."""
        self.is_over = True
        if self._committer is not None:
            await self._committer.close()
