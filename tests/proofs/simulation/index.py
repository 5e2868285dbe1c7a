"""The index of a simulated worker: in memory, and kept on what stands for its disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.accepted import count_partitions
from worker.core.known import IndexDelta
from worker.index.freshness import SavedIndex
from worker.index.memory import MemoryIndex
from worker.index.rows import latest_rows
from worker.index.store import VERSION
from worker.index.tails import Beside, Tail, extended, extended_beside
from worker.stream import Message, Partition


class Disk(MemoryIndex):
    """Offers what `worker.index.store.IndexStore` does. What was applied survives a kill."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[Partition, int] = {}
        self.rebuilt = 0
        self._identities: dict[str, str] = {}
        self._tails: dict[Partition, Tail] = {}
        self._beside: dict[Partition, Beside] = {}
        self._tombstones: dict[Partition, int] = {}
        self._stamp: int | None = None

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def clear(self, reason: str) -> None:
        rebuilt = self.rebuilt + 1
        self.__dict__.update(Disk().__dict__)
        self.rebuilt = rebuilt

    def positions(self) -> dict[Partition, int]:
        return dict(self.at)

    def last_current(self) -> int | None:
        return self._stamp

    def identities(self) -> dict[str, str]:
        return dict(self._identities)

    def refused(self) -> int:
        return self.foreign

    def saved(self) -> SavedIndex:
        return SavedIndex(
            VERSION,
            self._stamp,
            dict(self.at),
            self._identities,
            dict(self._tails),
            dict(self._beside),
            dict(self._tombstones),
        )

    def beside(self, messages: Sequence[Message], identity: str, _now_ms: int) -> None:
        self._beside |= extended_beside(self._beside, messages, identity)

    def note_tombstones(self, tombstones: Mapping[Partition, int]) -> None:
        self._tombstones = dict(tombstones)

    def stamp(self, now_ms: int) -> None:
        self._stamp = now_ms

    def apply(
        self,
        messages: Sequence[Message],
        positions: Mapping[Partition, int],
        identities: Mapping[str, str] | None = None,
    ) -> IndexDelta:
        latest = latest_rows(messages, count_partitions(positions))
        users = [id_ for id_, address in latest.users.items() if self._user(id_, address)]
        matches = [id_ for id_, there in latest.matches.items() if self._match(id_, there=there)]
        self._tails |= extended(self._tails, self.at, messages, positions)
        self.at.update(positions)
        self._identities.update(identities or {})
        self.foreign += len(latest.refused)
        return IndexDelta(users, matches)

    def content(self) -> tuple[dict[bytes, bytes], dict[bytes, tuple[bytes, ...]], set[bytes]]:
        """All users with their addresses, all addresses with their holders, all matches."""
        return self._users, self._holders, self._matches
