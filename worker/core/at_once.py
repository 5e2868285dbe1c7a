"""Selects the records of a batch to accept at once: plainly good, with nothing to wait for.

`columns` defines plainly good. These records may be accepted before the others of their batch.
Order within a key still holds. If a key is queued, or one of the others has it, every record of the
key is among the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from itertools import chain
from typing import NamedTuple, Protocol

from schemas.fields import Row
from worker.core.columns import ColumnDecoder, Columns, column_of
from worker.core.decode import DEFAULT_LIMIT, DecodeResult, Invalid, decoders
from worker.core.keys import ids_of
from worker.core.rules import odd_uuids
from worker.stream import Message


class BatchLookup(Protocol):
    """Look-ups at the moment of judging. An id is the 16 bytes of its UUID."""

    def unknown_users(self, ids: Sequence[bytes], /) -> list[bytes]:
        """The ids that belong to no known user."""

    def unknown_matches(self, ids: Sequence[bytes], /) -> list[bytes]:
        """The ids that belong to no known match."""


class Sorted(NamedTuple):
    """A batch, split into the records to accept at once and the others."""

    at_once: Columns
    others: list[tuple[int, DecodeResult]]
    """Place in the batch and decoding outcome of each record to be judged individually."""


class Sorter:
    """Splits batches of one entity."""

    def __init__(self, decoder: ColumnDecoder) -> None:
        self.decoder = decoder
        single = decoder.single
        self._users = [column_of(name) for name in single.user_fields]
        self._matches = [column_of(name) for name in single.match_fields]
        names = [column.name for column in single.entity.columns if column.names]
        self._attendees = [column_of(name) for name in names]

    def sort_out(
        self,
        messages: Sequence[Message],
        arrivals: Sequence[int],
        skew_seconds: float,
        queued: AbstractSet[bytes],
        known: BatchLookup,
    ) -> Sorted:
        """Split the messages of one partition, given in order. Changes no state.

        `queued` are the keys with a parked record. Raises what `known` raises.
        """
        values = [message.value for message in messages]
        keys = [message.key for message in messages]
        columns, others = self.decoder.decode(values, keys, arrivals, skew_seconds)
        waiting = self._waiting(columns.rows, known)
        held = {outcome.key for outcome in others.values() if not isinstance(outcome, Invalid)}
        held.update(columns.keys[at] for at in waiting)
        for apart in (held, queued):
            if apart and not apart.isdisjoint(columns.keys):
                waiting.update(at for at, key in enumerate(columns.keys) if key in apart)
        for at in waiting:
            others[columns.indices[at]] = self.decoder.outcome(columns, at)
        return Sorted(columns.without(waiting), sorted(others.items()))

    def _waiting(self, rows: Sequence[Row], known: BatchLookup) -> set[int]:
        """Positions of rows with an address, or with an unknown user, match or attendee.

        Attendees count because an unknown attendee is a warning.
        """
        if self.decoder.single.has_address:
            return set(range(len(rows)))
        users = [column(rows) for column in self._users]
        matches = [column(rows) for column in self._matches]
        attendees = [[some or () for some in column(rows)] for column in self._attendees]
        named = list({*chain.from_iterable(chain.from_iterable(attendees))})
        no_ids = {named[at] for at in odd_uuids(named)}
        asked = {*chain.from_iterable(users), *named} - no_ids
        unknown_users = _unknown(asked, known.unknown_users)
        unknown_matches = _unknown({*chain.from_iterable(matches)}, known.unknown_matches)
        return {
            *_having(users, unknown_users),
            *_having(matches, unknown_matches),
            *_having_one_of(attendees, unknown_users | no_ids),
        }


def _unknown(
    uuids: AbstractSet[str | None], ask: Callable[[Sequence[bytes]], list[bytes]]
) -> AbstractSet[str]:
    """The UUIDs whose ids `ask` returns as unknown. None stands for an absent reference."""
    texts = list(filter(None, uuids))
    ids = ids_of(texts)
    unknown = set(ask(ids))
    if not unknown:
        return set()
    return {text for text, id_ in zip(texts, ids, strict=True) if id_ in unknown}


def _having(columns: Iterable[Sequence[str | None]], some: AbstractSet[str]) -> Iterator[int]:
    """The positions at which one of the columns has a value in `some`."""
    if some:
        for column in columns:
            yield from [at for at, value in enumerate(column) if value in some]


def _having_one_of(
    columns: Iterable[Sequence[Sequence[str]]], some: AbstractSet[str]
) -> Iterator[int]:
    """The positions at which a list of one of the columns has an entry in `some`."""
    if some:
        for column in columns:
            yield from [at for at, values in enumerate(column) if not some.isdisjoint(values)]


@cache
def sorters(limit: int = DEFAULT_LIMIT) -> Mapping[str, Sorter]:
    """A sorter for each entity, by name."""
    return {name: Sorter(ColumnDecoder(single)) for name, single in decoders(limit).items()}
