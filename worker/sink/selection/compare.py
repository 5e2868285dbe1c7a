"""What changed since an export: compares the current rows with the delivered ones. Pure.

Both arrive in key order, so one pass in constant memory is enough. A bookmark holds key and digest
of each delivered row, which is enough to detect a change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from worker.sink.selection.plan import Reason

DIGEST_SIZE: Final = 16


class ComparedRow(NamedTuple):
    """A row that belongs in the export; `changed` if it is new or changed, so must be delivered."""

    key: bytes
    digest: bytes
    row: bytes
    changed: bool


class Gone(NamedTuple):
    """A delivered row that no longer belongs in the export."""

    key: bytes
    reason: Reason


def digest_of(row: bytes) -> bytes:
    """The digest of a canonical row, as a bookmark holds it."""
    return hashlib.blake2b(row, digest_size=DIGEST_SIZE).digest()


def compare(
    current: Iterable[tuple[bytes, bytes, Reason | None]], base: Iterator[tuple[bytes, bytes]]
) -> Iterator[ComparedRow | Gone]:
    """Compare all rows in the store (key, row, why it does not belong) with the base.

    `base` has key and digest of each delivered row. A reader who takes the gone rows out of the
    base and puts the changed rows in has exactly the rows that belong.
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
            yield ComparedRow(key, digest, row, digest != before)
        elif before is not None:
            yield Gone(key, reason)
    while held is not None:
        yield Gone(held[0], Reason.DELETED)
        held = next(base, None)
