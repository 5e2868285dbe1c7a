"""The records that the benches are about: those of the demo."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import cycle, islice

from schemas import ENTITIES
from worker.brokers.contract import Outgoing
from worker.core.decode import Decoded, RecordDecoder, latest_moment
from worker.demo.programme import programme
from worker.demo.record import Record
from worker.demo.stream import stream
from worker.exports.spool import BLOCK
from worker.topics import Names

SEED = 7
BAD_SHARE = 0.03
_NOW = datetime.now(UTC)
_PER_USER = 9.5  # records, at least
_LAST_DIGITS = re.compile(
    rb"([0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{4})[0-9a-f]{8}"
)


def latest() -> datetime:
    """The latest moment that is not in the future."""
    return latest_moment(int(_NOW.timestamp() * 1000), 60)


def mixed(count: int, bad_share: float = BAD_SHARE, seed: int = SEED) -> list[Record]:
    """The demo's stream: at least `count` records in the order in which they are sent."""
    return list(stream(count, seed, _NOW, bad_share))


def outgoing(names: Names, records: Sequence[Record]) -> list[Outgoing]:
    """The records as messages for the inputs, under their keys."""
    return [
        Outgoing(names.inputs(r.entity), None if r.key is None else r.key.encode(), r.value)
        for r in records
    ]


@lru_cache(maxsize=2)
def good_records(each: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """Key and value of records without an error, `each` of every entity; they come again.

    Of at most 2,000 users with all that belongs to them.
    """
    found: dict[str, list[tuple[bytes, bytes]]] = {entity: [] for entity in ENTITIES}
    for record in programme(min(2_000, max(40, each)), SEED, _NOW):
        if record.key is not None and record.value is not None:
            found[record.entity].append((record.key.encode(), record.value))
    return {entity: list(islice(cycle(some), each)) for entity, some in found.items()}


@lru_cache(maxsize=1)
def keyed(users: int = 2_000) -> dict[str, dict[bytes, bytes]]:
    """The rows of a programme as the sink holds them, by entity and key, each once."""
    rows: dict[str, dict[bytes, bytes]] = {entity: {} for entity in ENTITIES}
    decoders = {name: RecordDecoder(entity) for name, entity in ENTITIES.items()}
    for record in programme(users, SEED, _NOW):
        outcome = decoders[record.entity].decode(record.value, None, latest())
        if isinstance(outcome, Decoded):
            rows[record.entity][outcome.key] = outcome.row
    return rows


def canonical() -> dict[str, list[bytes]]:
    """The rows of a programme as the sink holds them, by entity, each once."""
    return {entity: list(some.values()) for entity, some in keyed().items()}


def many(total: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Entity, key and row of so many different rows: copies of the programme, each with its ids.

    In the programme's proportions, and so that whatever a row refers to comes before it.
    """
    templates = [
        (entity, _LAST_DIGITS.sub(rb"\1%", key), _LAST_DIGITS.sub(rb"\1\0", row))
        for entity, some in keyed().items()
        for key, row in some.items()
    ]
    for number in range(-(-total // len(templates))):
        digits = b"%08x" % number
        for entity, key, row in templates[: total - number * len(templates)]:
            yield entity, key.replace(b"%", digits), row.replace(b"\0", digits)


def blocks(rows: Sequence[bytes], count: int) -> Iterator[list[bytes]]:
    """`count` of the rows, which come again, in blocks as the writers get them."""
    block: list[bytes] = []
    held = 0
    for row in islice(cycle(rows), count):
        block.append(row)
        held += len(row) + 1
        if held >= BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block
