"""The rejections that a command chooses, some at a time, each time as the topics say then."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from schemas import ENTITIES
from worker.cli.console import Context
from worker.cli.desk import catch_up, open_store
from worker.errors import UsageError

if TYPE_CHECKING:
    from worker.brokers.contract import Broker
    from worker.desk.queries import Candidate, Filter
    from worker.desk.store import RejectionStore
    from worker.stream import Partition

_COORDINATE: Final = re.compile(
    rf"(?:.+\.)?(in|rejected)\.({'|'.join(ENTITIES)})/([0-9]{{1,6}})/([0-9]{{1,18}})"
)
_TURN_SECONDS: Final = 5.0
"""Opening and closing the store takes as long as reading its file, so not for every page."""
_STAGES: Final = (
    ("users",),
    ("matches",),
    tuple(entity for entity in ENTITIES if entity not in ("users", "matches")),
)
"""Entities that come together: what records refer to comes before them."""


def read_coordinate(context: Context, text: str) -> str:
    """The coordinate of a record or of a rejection, with the prefix. Raises UsageError."""
    found = _COORDINATE.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{text!r} is no coordinate: say TOPIC/PARTITION/OFFSET of an input or of a "
            "topic of rejections, such as in.users/3/17"
        )
    kind, entity, partition, offset = found.groups()
    return f"{context.settings.prefix}.{kind}.{entity}/{int(partition)}/{int(offset)}"


class Pages:
    """The chosen rejections, those of users first and those of matches next.

    What is rejected after the first page is left out: a record that is sent again may be rejected
    again. Every few seconds other commands can use the store. Call `close` at the end.
    """

    def __init__(
        self,
        context: Context,
        chosen: Filter,
        coordinates: tuple[str, ...] = (),
        *,
        limit: int,
        with_orphans: bool = False,
    ) -> None:
        """If there are coordinates, `chosen` does not matter.

        `with_orphans` adds the orphans that the chosen ones have caused.
        """
        self.skipped: Counter[str] = Counter()
        """What the caller passes over, by reason; empty again if everything comes again."""
        self.orphans = 0
        """The open orphans that the chosen ones have caused."""
        self._context = context
        self._chosen = chosen
        self._coordinates = coordinates
        self._limit = limit
        self._with_orphans = with_orphans
        self.begun = 0
        """How often everything came from the start: again if the store was made anew."""
        self._identity = ""
        self._ends: Mapping[Partition, int] | None = None
        """Rejections from here on came after the first page."""
        self._stage = 0
        self._after = 0
        self._open = AsyncExitStack()
        self._store: RejectionStore | None = None
        self._since = 0.0
        """When the store was opened."""

    async def next(self, broker: Broker) -> list[Candidate]:
        """The next rejections; empty if there are no more.

        Raises UsageError for a coordinate without a rejection, and what `open_store` raises.
        """
        if self._store is None:
            opening = open_store(self._context, broker, quiet=True)
            self._store = await self._open.enter_async_context(opening)
            self._since = time.monotonic()
        else:
            await catch_up(broker, self._store, quiet=True)
        if self._coordinates:
            done, self._stage = self._stage, len(_STAGES)
            return [] if done else await asyncio.to_thread(self._at_coordinates, self._store)
        page = await asyncio.to_thread(self._page, self._store)
        if time.monotonic() - self._since >= _TURN_SECONDS:
            await self.close()  # others can use it while the caller works on the page
        return page

    async def close(self) -> None:
        """Release the store; `next` opens it again."""
        self._store = None
        await self._open.aclose()

    def _page(self, store: RejectionStore) -> list[Candidate]:
        from worker.desk import queries

        identity = store.database.identity
        if identity != self._identity:  # the first page, or the store was made anew
            self._identity, self._stage, self._after = identity, 0, 0
            self.begun += 1
            self.skipped.clear()
            self._ends = self._ends or store.saved().positions
            self.orphans = queries.orphans_of(store, self._chosen)
        ends = self._ends or {}
        while self._stage < len(_STAGES):
            page = queries.candidates(
                store,
                self._chosen,
                _STAGES[self._stage],
                self._after,
                self._limit,
                consequences=self._with_orphans,
            )
            if not page:
                self._stage, self._after = self._stage + 1, 0
                continue
            self._after = page[-1].number
            if found := [one for one in page if one.offset < ends.get(one.partition, 0)]:
                return found
        return []

    def _at_coordinates(self, store: RejectionStore) -> list[Candidate]:
        from worker.desk import queries

        found = []
        for coordinate in self._coordinates:
            candidate = queries.candidate_at(store, coordinate)
            if candidate is None:
                raise UsageError(f"there is no rejection at {coordinate}, or no longer")
            found.append(candidate)
        return list(dict.fromkeys(found))
