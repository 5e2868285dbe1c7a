"""Steps 2 to 4 of a take-over: fences all earlier owners, so that the saved state is complete.

See docs/exactly-once.md, "Fence, then read".
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, NamedTuple

from worker.brokers.contract import Broker
from worker.core.ownership import earlier_writer_name, no_owners, owners_before, writer_name
from worker.core.topics import Names
from worker.engine.session import group_of
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, Partition

GIVE_UP_SECONDS: Final = 1.0
"""How long a live owner has to give a task up; a fence would end all of its tasks."""
_PATIENCE: Final = 20.0
_STEP_SECONDS: Final = 0.05


class Earlier(NamedTuple):
    """The fenced owners of a task, and what hides others.

    An owner at a missing offset, removed or damaged and skipped, is not fenced. `unreadable` are
    the offsets of messages that no worker has written.
    """

    owners: list[str]
    missing: int
    unreadable: list[int]


async def fence_earlier(
    broker: Broker,
    names: Names,
    number: int,
    owner: str,
    offset: int,
    own: Collection[str] = (),
    *,
    seconds: float = GIVE_UP_SECONDS,
) -> Earlier:
    """Fence every other owner that took the task over before `offset` in the owners topic.

    Live owners have `seconds` to give the task up first. Owners in `own` get no time: they are
    earlier sessions of this process and give nothing up. Afterwards the saved state of the task
    is complete: the open transactions of the fenced owners are aborted.

    Raises BrokerUnavailable, DamagedLog.
    """
    partition = Partition(names.owners, number)
    found = await _not_given_up(broker, partition, offset, {owner, *own}, seconds)
    earlier = [one for one in found.owners if one != owner]
    # Without an earlier owner, a worker of a version before 2 may still write for the task.
    fenced = [writer_name(names, one) for one in earlier]
    fenced = fenced or [earlier_writer_name(names, number)]
    await asyncio.gather(*(_fence(broker, names, name) for name in fenced))
    return found._replace(owners=earlier)


async def _fence(broker: Broker, names: Names, name: str) -> None:
    committer = await broker.committer(name, group_of(names))
    await committer.close()


async def _not_given_up(
    broker: Broker, partition: Partition, offset: int, own: Collection[str], seconds: float
) -> Earlier:
    """The owners that have not given the task up in time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    span = (await broker.spans([partition], uncommitted=True))[partition]
    # The open transaction of a dead owner hides all later messages from a committed read.
    reader = broker.reader(uncommitted=True)
    reader.assign({partition: span.start})
    messages: list[Message] = []
    holes = span.start  # compaction never moves the start: see `OffsetRange`
    try:
        while True:
            messages += await reader.read(5_000, _STEP_SECONDS)
            holes += reader.skipped().get(partition, 0)
            if reader.position(partition) > offset:
                earlier = owners_before(messages, offset)
                # The tombstone of an owner that gives up late has a higher offset.
                given_up = {m.key for m in messages if m.offset > offset and m.value is None}
                left = [owner for owner in earlier if owner.encode() not in given_up]
                late = loop.time() - began >= seconds
                if late or not any(owner not in own for owner in left):
                    return Earlier(left, holes, no_owners(messages))
            elif partition in (damaged := reader.damaged()):
                raise DamagedLog(damaged[partition])
            elif loop.time() - began >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {partition.topic}/{partition.number} makes no progress: the"
                    " partition has no leader"
                )
    finally:
        await reader.close()
