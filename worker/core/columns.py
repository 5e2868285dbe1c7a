"""Decodes a batch of one entity column by column: each check runs once for all of its records.

A record is *plainly good* if it passes all checks. Every other record is left to
`worker.core.decode`, which alone decides what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from itertools import compress
from operator import attrgetter
from typing import Annotated, Any, get_type_hints

import msgspec

from schemas import Column, Entity, Kind
from schemas.fields import Row
from worker.core.decode import Decoded, DecodeResult, RecordDecoder, latest_moment
from worker.core.rules import odd_uuids, plain_email

_Id = Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
_Column = Callable[[Sequence[Row]], list[Any]]

_encode = msgspec.json.Encoder().encode


class Columns(msgspec.Struct, frozen=True):
    """The plainly good records of a batch, in batch order; all columns have the same length."""

    indices: Sequence[int]
    """The index of each record in the batch."""
    rows: Sequence[Row]
    keys: Sequence[bytes]
    """Canonical keys, as in `Decoded.key`."""
    encoded: Sequence[bytes]
    """Rows in canonical form, as in `Decoded.row`."""

    def without(self, some: Collection[int]) -> Columns:
        """The columns without the records at these positions."""
        if not some:
            return self
        stays = _all_but(some, len(self.indices))
        return Columns(
            list(compress(self.indices, stays)),
            list(compress(self.rows, stays)),
            list(compress(self.keys, stays)),
            list(compress(self.encoded, stays)),
        )


class ColumnDecoder:
    """Decodes batches of one entity; `single` judges the records that are not plainly good."""

    def __init__(self, single: RecordDecoder) -> None:
        self.single = single
        entity = single.entity
        self._struct = msgspec.json.Decoder(_without_patterns(entity)).decode
        self._key = _key(entity)
        self._ids = _named(entity, lambda column: column.kind is Kind.UUID)
        self._optional_texts = _named(
            entity, lambda column: column.kind is Kind.TEXT and not column.required
        )
        self._texts = _named(entity, lambda column: column.kind is Kind.TEXT and column.required)
        self._ratings = _named(entity, lambda column: column.kind is Kind.RATING)
        self._addresses = _named(entity, lambda column: column.kind is Kind.EMAIL)
        self._moments = _named(entity, lambda column: column.kind is Kind.TIMESTAMP)

    def decode(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        arrivals: Sequence[int],
        skew_seconds: float,
    ) -> tuple[Columns, dict[int, DecodeResult]]:
        """The plainly good records, and the outcomes of the other records by index.

        `RecordDecoder.decode` accepts each plainly good record as the same row without a warning,
        given the `latest_moment` of its arrival. The other outcomes are those of
        `RecordDecoder.decode`.
        """
        columns, others = self.plainly_good(values, keys, arrivals, skew_seconds)
        decode = self.single.decode
        return columns, {
            index: decode(values[index], keys[index], latest_moment(arrivals[index], skew_seconds))
            for index in sorted(others)
        }

    def decode_all(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        arrivals: Sequence[int],
        skew_seconds: float,
    ) -> list[DecodeResult]:
        """The outcome of each message, as `RecordDecoder.decode` returns it."""
        columns, outcomes = self.decode(values, keys, arrivals, skew_seconds)
        for at, index in enumerate(columns.indices):
            outcomes[index] = self.outcome(columns, at)
        return [outcomes[index] for index in range(len(values))]

    def outcome(self, columns: Columns, at: int) -> Decoded:
        """The single outcome of the record at that position of the columns."""
        relations = self.single.relations(columns.rows[at])
        return Decoded(columns.keys[at], columns.encoded[at], *relations)

    def plainly_good(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        arrivals: Sequence[int],
        skew_seconds: float,
    ) -> tuple[Columns, set[int]]:
        """The plainly good records, and the indices of the others."""
        rows, others = self._read(values)
        indices: Sequence[int] = range(len(values))
        if others:
            stays = _all_but(others, len(values))
            indices, keys = list(compress(indices, stays)), list(compress(keys, stays))
        self._tidy(rows)
        odd = {
            *self._odd_ids(rows),
            *self._odd_texts(rows),
            *self._odd_moments(rows, indices, arrivals, skew_seconds),
        }
        canonical = self._key(rows)
        if keys != canonical:
            pairs = enumerate(zip(keys, canonical, strict=True))
            odd.update(at for at, (key, own) in pairs if key != own and key is not None)
        try:
            encoded = list(map(_encode, rows))
        except RecursionError:  # rare enough to judge the whole batch record by record
            return Columns((), (), (), ()), set(range(len(values)))
        longest = self.single.longest_row
        if max(map(len, encoded), default=0) > longest:
            odd.update(at for at, row in enumerate(encoded) if len(row) > longest)
        others.update(indices[at] for at in odd)
        return Columns(indices, rows, canonical, encoded).without(odd), others

    def _read(self, values: Sequence[bytes | None]) -> tuple[list[Row], set[int]]:
        """The rows of messages that match the Struct's types, and the indices of the others."""
        limit, decode = self.single.limit, self._struct
        rows: list[Row] = []
        others: set[int] = set()
        for index, value in enumerate(values):
            if value is None or len(value) > limit:
                others.add(index)
                continue
            try:
                rows.append(decode(value))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                others.add(index)
        return rows, others

    def _tidy(self, rows: Sequence[Row]) -> None:
        """Write other spellings in canonical form: empty optional text, and -0.0."""
        for name, column in self._optional_texts:
            texts = column(rows)
            if "" in texts:  # counts as absent
                for at, text in enumerate(texts):
                    if text == "":
                        setattr(rows[at], name, None)
        for name, column in self._ratings:
            ratings = column(rows)
            if 0 in ratings:  # may be -0.0
                for at, rating in enumerate(ratings):
                    if rating == 0:
                        setattr(rows[at], name, 0.0)

    def _odd_ids(self, rows: Sequence[Row]) -> Iterator[int]:
        """The positions of rows with an id that is not in canonical form."""
        for _, column in self._ids:
            ids = column(rows)
            odd = list(odd_uuids(list(filter(None, ids))))
            if odd:
                there = [at for at, id_ in enumerate(ids) if id_]
                yield from [there[at] for at in odd]

    def _odd_texts(self, rows: Sequence[Row]) -> Iterator[int]:
        """The positions of rows with blank required text, or an address of an uncommon kind."""
        for _, column in self._texts:
            texts = column(rows)
            if not all(map(str.strip, texts)):
                yield from [at for at, text in enumerate(texts) if not text.strip()]
        for _, column in self._addresses:
            addresses = column(rows)
            if not all(map(plain_email, addresses)):
                yield from [at for at, address in enumerate(addresses) if not plain_email(address)]

    def _odd_moments(
        self,
        rows: Sequence[Row],
        indices: Sequence[int],
        arrivals: Sequence[int],
        skew_seconds: float,
    ) -> Iterator[int]:
        """Convert times to UTC; the positions of rows where that fails or a time is too late."""
        first = latest_moment(min(arrivals, default=0), skew_seconds)
        for name, column in self._moments:
            moments = column(rows)
            for at in [
                at
                for at, moment in enumerate(moments)
                if moment is not None and (moment.tzinfo is not UTC or moment > first)
            ]:
                latest = latest_moment(arrivals[indices[at]], skew_seconds)
                if not _to_utc(rows[at], name, moments[at], latest):
                    yield at


def _to_utc(row: Row, name: str, moment: datetime, latest: datetime) -> bool:
    """Convert one time of a row to UTC; False if it is naive, out of range or after `latest`."""
    if moment.tzinfo is None or moment > latest:
        return False
    try:
        setattr(row, name, moment.astimezone(UTC))
    except OverflowError:
        return False
    return True


def _all_but(some: Collection[int], length: int) -> bytearray:
    """A selector for `compress` that excludes these positions."""
    selected = bytearray(b"\1" * length)
    for at in some:
        selected[at] = 0
    return selected


def _without_patterns(entity: Entity) -> type[Row]:
    """The entity's Struct, with ids as any text of 36 characters.

    msgspec spends more time on the id patterns than on all the rest. `_odd_ids` checks whole
    columns instead.
    """
    hints = get_type_hints(entity.struct, include_extras=True)
    for column in entity.columns:
        if column.kind is Kind.UUID:
            hints[column.name] = _Id if column.required else _Id | None
    fields = [
        (column.name, hints[column.name], msgspec.NODEFAULT if column.required else None)
        for column in entity.columns
    ]
    struct = msgspec.defstruct(entity.name, fields, bases=(Row,), kw_only=True)
    assert issubclass(struct, Row)
    return struct


def _named(entity: Entity, belongs: Callable[[Column], bool]) -> list[tuple[str, _Column]]:
    """The columns of an entity for which `belongs` is true, each with its name."""
    return [(c.name, column_of(c.name)) for c in entity.columns if belongs(c)]


def column_of(name: str) -> _Column:
    """A function that reads the named field of rows."""
    read = attrgetter(name)
    return lambda rows: list(map(read, rows))


def _key(entity: Entity) -> _Column:
    """A function that reads the canonical keys of rows."""
    fields = [attrgetter(name) for name in entity.key]
    if len(fields) == 1:
        return lambda rows: [text.encode() for text in map(fields[0], rows)]
    first, second = fields
    return lambda rows: [f"{first(row)}:{second(row)}".encode() for row in rows]
