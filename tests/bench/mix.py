"""The records that the benches are about: those of the demo."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import cycle, islice
from random import Random

from schemas import ENTITIES
from worker.core.decode import Decoded, RecordDecoder, latest_moment
from worker.core.topics import Names
from worker.demo import words
from worker.demo.programme import programme
from worker.demo.record import Record, Row, encode, key_of, uuid4
from worker.demo.record_stream import stream
from worker.exports.spool import BLOCK
from worker.stream import ProducerRecord

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


def mixed(count: int, bad_share: float = BAD_SHARE) -> Iterator[Record]:
    """The demo's stream: at least `count` records in the order in which they are sent."""
    return stream(count, SEED, _NOW, bad_share)


def users(count: int) -> Iterator[Record]:
    """So many different users, each with an address of its own; all are good."""
    rng = Random(SEED)
    for number in range(count):
        yield user(rng, number)


def user(rng: Random, number: int) -> Record:
    """A good user; `number` makes the address."""
    tongue = rng.choice(words.TONGUES)
    (first, first_slug), (last, last_slug) = rng.choice(tongue.first), rng.choice(tongue.last)
    row: Row = {
        "id": uuid4(rng),
        "email": f"{first_slug}.{last_slug}{number}@{rng.choice(words.DOMAINS)}",
        "first_name": first,
        "last_name": last,
        "role": ("participant", "buddy")[number % 2],
        "joined_at": "2024-03-01T09:30:00Z",
        "language_preference": rng.choice(tongue.preferences),
        "interests": rng.sample(words.INTERESTS, rng.randrange(4)),
        "location": rng.choice(words.CITIES),
    }
    return Record("users", key_of("users", row), encode(row))


def outgoing(names: Names, records: Iterable[Record]) -> Iterator[ProducerRecord]:
    """The records as messages for the inputs, under their keys."""
    for record in records:
        key = None if record.key is None else record.key.encode()
        yield ProducerRecord(names.input(record.entity), key, record.value)


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
