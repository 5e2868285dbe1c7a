"""What has changed since an export: the rows of now beside what was delivered then. Pure.

Both come in the order of their keys, so one pass over both is enough, in constant memory. What was
delivered is known by key and digest: to tell whether a row changed takes no more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from worker.sink.selection.plan import Reason

DIGEST_SIZE: Final = 16


class Row(NamedTuple):
    """A row that belongs into the export, and whether it must be delivered: new, or changed."""

    key: bytes
    digest: bytes
    row: bytes
    changed: bool


class Gone(NamedTuple):
    """A row that was delivered and no longer belongs."""

    key: bytes
    reason: Reason


def digest_of(row: bytes) -> bytes:
    """What a bookmark remembers of a canonical row."""
    return hashlib.blake2b(row, digest_size=DIGEST_SIZE).digest()


def compare(
    current: Iterable[tuple[bytes, bytes, Reason | None]], base: Iterator[tuple[bytes, bytes]]
) -> Iterator[Row | Gone]:
    """Of all rows in the store (key, row, why it does not belong) what becomes of each.

    `base` has key and digest of what was delivered. Whoever holds the base, puts the changed rows
    in and takes out those that are gone has exactly the rows that belong.
    """
    held = next(base, None)
    for key, row, reason in current:
        while held is not None and held[0] < key:
            yield Gone(held[0], Reason.DELETED)
            held = next(base, None)
        before = None
        if held is not None and held[0] == key:
            before = held[1]
            held = next(base, None)
        if reason is None:
            digest = digest_of(row)
            yield Row(key, digest, row, digest != before)
        elif before is not None:
            yield Gone(key, reason)
    while held is not None:
        yield Gone(held[0], Reason.DELETED)
        held = next(base, None)
