"""Takes a task over: fences whoever may still write for it, then reads how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from worker.brokers.contract import Broker
from worker.core.ownership import earlier_writer_name, owners_before, writer_name
from worker.core.topics import Names
from worker.engine.session import group_of
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, Partition

RELEASE_SECONDS: Final = 1.0
"""So long a live owner has to give a task up by itself: a fence would end all of its tasks."""
_PATIENCE: Final = 20.0
_STEP_SECONDS: Final = 0.05


async def fence_earlier(
    broker: Broker,
    names: Names,
    number: int,
    owner: str,
    offset: int,
    own: Collection[str] = (),
    *,
    seconds: float = RELEASE_SECONDS,
) -> tuple[list[str], int]:
    """Fence every other owner of a task that has taken it over before that offset.

    Returns who that was, and how many offsets are gone, removed or damaged and skipped: an owner
    among those is not fenced.

    They have so many `seconds` to give it up by themselves, but for `own`: earlier ones of this
    process, which give up nothing any more. Afterwards the state of the task is complete: what its
    earlier owners had open is aborted. Raises BrokerUnavailable, DamagedLog.
    """
    place = Partition(names.owners, number)
    left, holes = await _unreleased(broker, place, offset, {owner, *own}, seconds)
    earlier = [one for one in left if one != owner]
    # The first owner of its kind may follow one of an earlier release.
    fenced = [writer_name(names, owner) for owner in earlier]
    fenced = fenced or [earlier_writer_name(names, number)]
    await asyncio.gather(*(_fence(broker, names, name) for name in fenced))
    return earlier, holes


async def _fence(broker: Broker, names: Names, name: str) -> None:
    committer = await broker.committer(name, group_of(names))
    await committer.close()


async def _unreleased(
    broker: Broker, place: Partition, offset: int, own: Collection[str], seconds: float
) -> tuple[list[str], int]:
    """Who has not given the task up, though those that live had time to; and the gaps."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    span = (await broker.spans([place], uncommitted=True))[place]
    # A dead owner's open transaction hides all that lies behind it from readers of the committed.
    reader = broker.reader(uncommitted=True)
    reader.assign({place: span.start})
    messages: list[Message] = []
    holes = span.start  # compaction moves no start: `OffsetRange`
    try:
        while True:
            messages += await reader.read(5_000, _STEP_SECONDS)
            holes += reader.skipped().get(place, 0)
            if reader.position(place) > offset:
                earlier = owners_before(messages, offset)
                # Tombstones that come late lie behind the offset.
                given_up = {m.key for m in messages if m.offset > offset and m.value is None}
                left = [owner for owner in earlier if owner.encode() not in given_up]
                late = loop.time() - began >= seconds
                if late or not any(owner not in own for owner in left):
                    return left, holes
            elif place in (damaged := reader.damaged()):
                raise DamagedLog(damaged[place])
            elif loop.time() - began >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {place.topic}/{place.number} makes no progress: the partition has"
                    " no leader"
                )
    finally:
        await reader.close()
