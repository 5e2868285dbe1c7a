"""Notices other programs in a group of ours to which the group gives partitions.

Any Kafka client may join any group. What it gets there, none of our services works on, and none of
them can see that: to each it looks as if another one had it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.errors import BuddyError, ConfigurationError
from worker.status.strangers import stranger_in
from worker.waiting import wait

LOOK_SECONDS: Final = 20.0

_log = structlog.get_logger(__name__)


async def watch_group(
    broker: Broker, group: str, stop: asyncio.Event, report: Callable[[str | None], None]
) -> None:
    """Report such a program every 20 s, and None when there is none, until `stop`.

    A change is logged (`stranger_in_group`). An outage is for others to report.
    """
    before: str | None = None
    while not stop.is_set():
        try:
            found = stranger_in(group, await broker.members(group))
        except ConfigurationError as error:  # a member that cannot be seen
            found = str(error)
        except BuddyError:
            found = before
        if found is not None and found != before:
            _log.error("stranger_in_group", group=group, reason=found)
        report(found)
        before = found
        await wait(stop, LOOK_SECONDS)
