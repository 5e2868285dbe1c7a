"""The index on disk, in LMDB: a restart reads only new messages.

`trees` has the layout. LMDB was chosen by measurement (docs/performance.md). The index is ready
within milliseconds, since nothing is loaded: its memory is the page cache of the system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import structlog

from worker.accepted import count_partitions
from worker.core.known import IndexDelta
from worker.index.environment import ABOUT, Environment
from worker.index.freshness import SavedIndex
from worker.index.rows import Latest, latest_rows
from worker.index.tails import Beside, Tail, extended, extended_beside
from worker.index.trees import (
    ADDRESSES,
    FOREIGN,
    LAYOUT,
    Trees,
    partition_key,
    partition_of,
    write_rows,
)
from worker.log import Sparing
from worker.stream import Message, Partition

if TYPE_CHECKING:
    from lmdb import _Database

VERSION: Final = 2
"""Version of the layout above; any other version on disk is rebuilt."""

_LAST_CURRENT: Final = b"last_current"
_TAIL, _BESIDE, _TOMBSTONES = b"tail/", b"beside/", b"tombstones/"
_STAMP_EVERY_MS: Final = 5_000
_MOST_SEEN: Final = 100_000
"""Maximum number of cached known ids per entity, about 10 MB."""

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class IndexStore:
    """The index in a directory of its own. Implements `Known`; for one thread at a time.

    After `apply` returns, its rows and positions survive a kill -9 together. After a failure of
    the system the index is empty, and is rebuilt from the topics. Every method may raise
    StateError with one line that says what to do. `map_size` is the initial size of the file in
    bytes; the file grows.
    """

    def __init__(self, directory: Path, *, map_size: int = 32 * 1024 * 1024) -> None:
        self.foreign = 0
        """Number of foreign rows (`worker.accepted`) that this object has refused."""
        self._env = Environment(directory, LAYOUT, version=VERSION, map_size=map_size)
        self._last_current: int | None = None
        self._last_saved: int | None = None
        self._tails: dict[Partition, Tail] = {}
        self._beside: dict[Partition, Beside] = {}
        self._tombstones: dict[Partition, int] = {}
        self._unsaved: dict[Partition, Beside] = {}
        """The changes of `_beside` that are not on disk yet."""
        self._beside_saved: int | None = None
        self._foreign_rows = Sparing(_foreign_row)
        self._seen_users: set[bytes] = set()
        """Cache of known users: records refer to few users repeatedly.

        A look-up in the file takes ten times as long."""
        self._seen_matches: set[bytes] = set()

    def open(self) -> None:
        """Lock the directory; empty an index of another version, damaged or maybe torn.

        Raises StateError if another process holds the directory, or on a read or write failure.
        Afterwards pass `saved` to `freshness.reason_to_rebuild`: the index may be too old.
        """
        self._env.open()
        try:
            reason = self._damage()
            if reason is not None:
                self.clear(f"it is damaged ({reason})")
        except BaseException:
            self._env.close()
            raise

    def close(self) -> None:
        """Flush everything to the disk and release the directory."""
        try:
            if self._last_current is not None and self._last_current != self._last_saved:
                self._save_stamp(self._last_current)
            if self._unsaved:
                self._transact(self._write_beside)
        finally:
            self._env.close()
            self._foreign_rows.flush()

    def clear(self, reason: str) -> None:
        """Discard everything, positions included, and log the reason."""
        self._env.clear(reason)
        self._look()

    # --- look-ups -----------------------------------------------------------------------------

    def user(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a user of that id is known."""
        try:
            return self._get(id, None, self._trees.users) is not None
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def match(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a match of that id is known."""
        try:
            return self._get(id, None, self._trees.matches) is not None
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def unknown_users(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known user has."""
        return self._unknown(ids, self._trees.users, self._seen_users)

    def unknown_matches(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known match has."""
        return self._unknown(ids, self._trees.matches, self._seen_matches)

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, given as `address_digest`."""
        try:
            holder = self._get(address, None, self._trees.addresses)
            if holder is None:
                return False
            if holder != user:
                return True
            with self._reader.cursor(self._trees.addresses) as cursor:
                return cursor.set_key(address) and cursor.count() > 1
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        """The users that hold the address, in no promised order."""
        try:
            if self._get(address, None, self._trees.addresses) is None:  # most addresses are free
                return ()
            with self._reader.cursor(self._trees.addresses) as cursor:
                return tuple(cursor.iternext_dup()) if cursor.set_key(address) else ()
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def counts(self) -> dict[str, int]:
        """The number of known users, matches and distinct addresses.

        Fewer addresses than users means that users share one: see `Known.holders`.
        """
        try:
            return {
                "users": self._reader.stat(self._trees.users)["entries"],
                "matches": self._reader.stat(self._trees.matches)["entries"],
                "addresses": int(self._get(ADDRESSES, b"0", self._trees.about)),
            }
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def positions(self) -> dict[Partition, int]:
        """The next offset to read of each partition; empty in an empty index."""
        try:
            with self._reader.cursor(self._trees.positions) as cursor:
                return {partition_of(key): int(offset) for key, offset in cursor}
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def last_current(self) -> int | None:
        """When all messages had last been read, in milliseconds since 1970; None if never."""
        return self._last_current

    def identities(self) -> dict[str, str]:
        """By topic: the identity that the positions belong to."""
        try:
            with self._reader.cursor(self._trees.topics) as cursor:
                return {name.decode(): identity.decode() for name, identity in cursor}
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    def refused(self) -> int:
        """Number of foreign rows before the positions, those read by earlier processes included."""
        try:
            return int(self._get(FOREIGN, b"0", self._trees.about))
        except lmdb.Error as error:
            raise self._env.failure(error) from error

    @property
    def rebuilt(self) -> int:
        """How often this object has discarded the content."""
        return self._env.cleared

    def saved(self) -> SavedIndex:
        """The metadata for `freshness.reason_to_rebuild`."""
        known, tails, beside = self.identities(), dict(self._tails), dict(self._beside)
        return SavedIndex(
            VERSION,
            self._last_current,
            self.positions(),
            known,
            tails,
            beside,
            dict(self._tombstones),
        )

    # --- updates ------------------------------------------------------------------------------

    def apply(
        self,
        messages: Sequence[Message],
        positions: Mapping[Partition, int],
        identities: Mapping[str, str] | None = None,
    ) -> IndexDelta:
        """Apply messages of the accepted topics; each partition in offset order.

        `positions` has the next offset to read of every partition of these topics, after these
        messages. `identities` has the identity of each topic. One transaction writes both with
        the rows and the `tails`. So no position is ever ahead of its rows, or mistaken for a
        position in another log. Applying messages again from an older position is harmless: at
        the same end, the index is the same. After StateError nothing of the call is applied.
        """
        latest = latest_rows(messages, count_partitions(positions))
        self._seen_users -= {id_ for id_, address in latest.users.items() if address is None}
        self._seen_matches -= {id_ for id_, there in latest.matches.items() if not there}
        known = identities or {}
        before = {} if positions.keys() <= self._tails.keys() else self.positions()
        tails = extended(self._tails, before, messages, positions)
        delta = self._transact(lambda txn: self._write(txn, latest, positions, known, tails))
        self._tails |= tails
        self._unsaved = {}
        self.foreign += len(latest.refused)
        self._foreign_rows.warn([refused.log_fields("index") for refused in latest.refused])
        return delta

    def beside(self, messages: Sequence[Message], identity: str, now_ms: int) -> None:
        """Extend the tails of a topic that has no rows; they help to recognise its log.

        They are saved with the next rows, every 5 s, and at `close`.
        """
        self._unsaved |= (changed := extended_beside(self._beside, messages, identity))
        self._beside |= changed
        if self._beside_saved is None or abs(now_ms - self._beside_saved) >= _STAMP_EVERY_MS:
            self._transact(self._write_beside)
            self._unsaved, self._beside_saved = {}, now_ms

    def stamp(self, now_ms: int) -> None:
        """Record that all messages have been read, or that an empty index starts to read.

        Call as often as that holds: the time is saved every 5 s, and at `close`.
        """
        self._last_current = now_ms
        if self._last_saved is None or abs(now_ms - self._last_saved) >= _STAMP_EVERY_MS:
            self._save_stamp(now_ms)

    def note_tombstones(self, tombstones: Mapping[Partition, int]) -> None:
        """Save `SavedIndex.tombstones`, once the index is found to be complete, or is empty."""
        before, after = self._tombstones, tombstones
        both = {p: (before.get(p, 0), after.get(p, 0)) for p in {*before, *after}}
        changed = {p: to for p, (was, to) in both.items() if was != to}

        def work(txn: lmdb.Transaction[bytes]) -> None:
            for partition, to in changed.items():
                txn.put(_TOMBSTONES + partition_key(partition), b"%d" % to, db=self._trees.about)

        if changed:
            self._transact(work)
            self._tombstones |= changed

    # --- inside -------------------------------------------------------------------------------

    def _damage(self) -> str | None:
        """Load the trees; returns a contradiction in their content, or None."""
        try:
            self._look()
            self.positions()
            self.identities()
            self.refused()
            users = self._reader.stat(self._trees.users)["entries"]
            pairs = self._reader.stat(self._trees.addresses)["entries"]
        except (lmdb.Error, ValueError) as error:
            return str(error)
        return None if users == pairs else f"{users} users hold {pairs} addresses"

    def _unknown(self, ids: Iterable[bytes], tree: _Database, seen: set[bytes]) -> list[bytes]:
        get = self._get
        asked = [id_ for id_ in ids if id_ not in seen]
        try:
            unknown = [id_ for id_ in asked if get(id_, None, tree) is None]  # `getmulti` is slower
        except lmdb.Error as error:
            raise self._env.failure(error) from error
        if len(seen) + len(asked) > _MOST_SEEN:
            seen.clear()
        seen.update(asked)
        seen.difference_update(unknown)
        return unknown

    def _look(self) -> None:
        """Load the trees and cached values; needed after each opening of the file."""
        trees = self._env.trees
        self._trees = Trees(**{name: trees[name] for name in LAYOUT}, about=trees[ABOUT])
        self._seen_users.clear()
        self._seen_matches.clear()
        self._view()
        stamp = self._get(_LAST_CURRENT, None, self._trees.about)
        self._last_current = self._last_saved = None if stamp is None else int(stamp)
        self._tails = {p: Tail.decode(data) for p, data in self._kept(_TAIL)}
        self._beside = {p: Beside.decode(data) for p, data in self._kept(_BESIDE)}
        self._tombstones = {p: int(data) for p, data in self._kept(_TOMBSTONES)}
        self._unsaved = {}

    def _kept(self, prefix: bytes) -> Iterator[tuple[Partition, bytes]]:
        with self._reader.cursor(self._trees.about) as cursor:
            for key, value in cursor:
                if key.startswith(prefix):
                    yield partition_of(key.removeprefix(prefix)), value

    def _view(self) -> None:
        """Switch to the state after the last write."""
        self._reader = self._env.reader
        self._get = self._reader.get

    def _transact(self, work: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        try:
            return self._env.write(work)
        finally:
            self._view()

    def _save_stamp(self, now_ms: int) -> None:
        def work(txn: lmdb.Transaction[bytes]) -> None:
            txn.put(_LAST_CURRENT, b"%d" % now_ms, db=self._trees.about)
            self._write_beside(txn)  # no later row may come to save it with

        self._transact(work)
        self._last_saved, self._unsaved = now_ms, {}

    def _write(
        self,
        txn: lmdb.Transaction[bytes],
        latest: Latest,
        positions: Mapping[Partition, int],
        identities: Mapping[str, str],
        tails: Mapping[Partition, Tail],
    ) -> IndexDelta:
        delta = write_rows(txn, self._trees, latest)
        for partition, offset in positions.items():
            txn.put(partition_key(partition), b"%d" % offset, db=self._trees.positions)
        for partition, tail in tails.items():
            txn.put(_TAIL + partition_key(partition), tail.encode(), db=self._trees.about)
        self._write_beside(txn)
        for name, identity in identities.items():
            txn.put(name.encode(), identity.encode(), db=self._trees.topics)
        return delta

    def _write_beside(self, txn: lmdb.Transaction[bytes]) -> None:
        for partition, beside in self._unsaved.items():
            txn.put(_BESIDE + partition_key(partition), beside.encode(), db=self._trees.about)


def _foreign_row(**fields: object) -> None:
    _log.error("foreign_row", **fields)
