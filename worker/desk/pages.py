"""Chosen rejections, some at a time, each time as the topics say then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from worker.brokers.contract import Broker
from worker.desk import queries
from worker.desk.opening import StoreAccess
from worker.desk.queries import Candidate, Filter
from worker.desk.seen import STAGES
from worker.desk.store import RejectionStore
from worker.errors import StateError, UsageError
from worker.stream import Partition

_TURN_SECONDS: Final = 5.0
"""Opening and closing the store takes as long as reading its file, so not for every page."""


class Pages:
    """The chosen rejections, those of users first and those of matches next.

    What is rejected after the first page is left out: a record that is sent again may be rejected
    again. Every few seconds other commands can use the store. Call `close` at the end.
    """

    def __init__(
        self,
        access: StoreAccess,
        chosen: Filter,
        coordinates: tuple[str, ...] = (),
        *,
        limit: int,
        with_orphans: bool = False,
        once: bool = False,
    ) -> None:
        """If there are coordinates, `chosen` does not matter.

        `with_orphans` adds the orphans that the chosen ones have caused. With `once`, pages need
        not be as the topics say then: what a desk has read before the first one is enough, also
        if open transactions or damage hide something.
        """
        self.skipped: Counter[str] = Counter()
        """What the caller passes over, by reason."""
        self.orphans = 0
        """The open orphans that the chosen ones have caused."""
        self._access = access
        self._chosen = chosen
        self._coordinates = coordinates
        self._limit = limit
        self._once = once
        self._with_orphans = with_orphans
        self._identity = ""
        self._ends: Mapping[Partition, int] = {}
        """Rejections from here on came after the first page."""
        self._left: list[Candidate] | None = None
        """Of those at coordinates, the ones that are still to come."""
        self._stage = 0
        self._after = 0
        self._open = AsyncExitStack()
        self._store: RejectionStore | None = None
        self._since = 0.0
        """When the store was opened."""

    async def next(self, broker: Broker) -> list[Candidate]:
        """The next rejections; empty if there are no more.

        Raises UsageError for a coordinate without a rejection, and what `StoreAccess.open` raises.
        Raises StateError if the store was made anew in between: numbers are others then, and an
        audit may be gone.
        """
        if self._store is not None and self._once and self._store.database.read_only:
            return await asyncio.to_thread(self._next_page, self._store)
        if self._store is None:
            opening = self._access.open(broker, whole=not self._once)
            self._store = await self._open.enter_async_context(opening)
            self._since = time.monotonic()
        else:
            await self._access.catch_up(broker, self._store, whole=not self._once)
        page = await asyncio.to_thread(
            self._next_at_coordinates if self._coordinates else self._next_page, self._store
        )
        if self._once and self._store.database.read_only:
            return page
        if self._store.database.read_only or time.monotonic() - self._since >= _TURN_SECONDS:
            await self.close()  # others can use it while the caller works on the page
        return page

    async def close(self) -> None:
        """Release the store; `next` opens it again."""
        self._store = None
        await self._open.aclose()

    def _next_page(self, store: RejectionStore) -> list[Candidate]:
        identity = store.database.identity
        if not self._identity:
            self._identity, self._ends = identity, store.saved().positions
            self.orphans = queries.orphans_of(store, self._chosen)
        elif identity != self._identity:
            raise StateError(
                "the store of rejections was made anew meanwhile, as its log line says: look at"
                " what is open, then run the command again"
            )
        while self._stage < len(STAGES):
            page = queries.candidates(
                store,
                self._chosen,
                STAGES[self._stage],
                self._after,
                self._limit,
                consequences=self._with_orphans,
            )
            if not page:
                self._stage, self._after = self._stage + 1, 0
                continue
            self._after = page[-1].number
            if found := [one for one in page if one.offset < self._ends.get(one.partition, 0)]:
                return found
        return []

    def _next_at_coordinates(self, store: RejectionStore) -> list[Candidate]:
        if self._left is None:
            found = []
            for coordinate in self._coordinates:
                candidate = queries.candidate_at(store, coordinate)
                if candidate is None:
                    raise UsageError(f"there is no rejection at {coordinate}, or no longer")
                found.append(candidate)
            stages = [entity for stage in STAGES for entity in stage]
            names = self._access.names
            self._left = sorted(
                set(found), key=lambda c: stages.index(names.entity_of(c.partition.topic))
            )
        page, self._left = self._left[: self._limit], self._left[self._limit :]
        return page
