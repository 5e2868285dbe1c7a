"""The trees of the index on disk, key -> value, and how rows change them.

* `users`: id -> address digest.
* `addresses`: address digest -> ids; the pairs of `users` reversed. Users that share an address
  give one digest several ids.
* `matches`: id -> empty.
* `positions`: topic/number -> offset.
* `topics`: topic -> identity.
* `about`: version, time, number of addresses, number of foreign rows. Also the last messages read
  by partition: `tail/` topic/number, or `beside/` topic/number for a partition without rows.
  And `tombstones/` topic/number: `SavedIndex.tombstones`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import lmdb

from worker.core.known import IndexDelta
from worker.index.rows import Latest
from worker.stream import Partition

if TYPE_CHECKING:
    from lmdb import _Database

LAYOUT: Final = {
    "users": False,
    "addresses": True,
    "matches": False,
    "positions": False,
    "topics": False,
}
"""By tree, whether a key may have several values. `about` exists in every environment."""
ADDRESSES, FOREIGN = b"addresses", b"foreign"
"""Keys in `about`: the number of distinct addresses, and of foreign rows."""


class Trees(NamedTuple):
    """The open trees."""

    users: _Database
    addresses: _Database
    matches: _Database
    positions: _Database
    topics: _Database
    about: _Database


def partition_key(partition: Partition) -> bytes:
    """The key of a partition in `positions`, and after a prefix in `about`."""
    return f"{partition.topic}/{partition.number}".encode()


def partition_of(key: bytes) -> Partition:
    """The partition that has this key."""
    topic, _, number = key.decode().rpartition("/")
    return Partition(topic, int(number))


def write_rows(txn: lmdb.Transaction[bytes], trees: Trees, latest: Latest) -> IndexDelta:
    """Write rows and deletions, and count what was refused. Returns the newly known ids."""
    delta = IndexDelta(_write_users(txn, trees, latest.users), [])
    with txn.cursor(trees.matches) as cursor:
        for id_, there in latest.matches.items():
            if not there:
                txn.delete(id_, b"", trees.matches)
            elif cursor.put(id_, b"", overwrite=False):
                delta.matches.append(id_)
    if latest.refused:
        number = int(txn.get(FOREIGN, b"0", trees.about)) + len(latest.refused)
        txn.put(FOREIGN, b"%d" % number, db=trees.about)
    return delta


def _write_users(
    txn: lmdb.Transaction[bytes], trees: Trees, users: Mapping[bytes, bytes | None]
) -> list[bytes]:
    new: list[bytes] = []
    held: list[tuple[bytes, bytes]] = []
    freed: list[tuple[bytes, bytes]] = []
    # In batch order: in key order neighbours would share pages, but sorting costs more than
    # that saves.
    with txn.cursor(trees.users) as cursor:
        put, get = cursor.put, txn.get
        for id_, address in users.items():
            # Most users are new, or known and unchanged. The unchanged write no page.
            if address is not None and put(id_, address, overwrite=False):
                new.append(id_)
                held.append((address, id_))
                continue
            old = get(id_, None, trees.users)
            if old == address:
                continue
            if old is not None:
                freed.append((old, id_))
            if address is None:
                txn.delete(id_, b"", trees.users)
            else:
                put(id_, address)
                held.append((address, id_))
    _write_addresses(txn, trees, held, freed)
    return new


def _write_addresses(
    txn: lmdb.Transaction[bytes],
    trees: Trees,
    held: Sequence[tuple[bytes, bytes]],
    freed: Sequence[tuple[bytes, bytes]],
) -> None:
    change = 0
    for address, id_ in freed:
        txn.delete(address, id_, trees.addresses)
        if txn.get(address, None, trees.addresses) is None:
            change -= 1
    with txn.cursor(trees.addresses) as cursor:
        # Without overwriting, only the first holder of each address is added: count those.
        _, first = cursor.putmulti(held, overwrite=False)
        change += first
        if first < len(held):
            for address, id_ in held:
                cursor.put(address, id_)
    if change:
        number = int(txn.get(ADDRESSES, b"0", trees.about)) + change
        txn.put(ADDRESSES, b"%d" % number, db=trees.about)
