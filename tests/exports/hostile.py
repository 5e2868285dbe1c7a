"""Random records of all eight entities, as senders write them, with text that breaks programs."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from schemas import ENTITIES, Column, Kind

Record = dict[str, Any]

SHARES: Final = {
    "users": 0.14,
    "matches": 0.12,
    "events": 0.14,
    "event_attendance": 0.14,
    "skill_sessions": 0.1,
    "checkins": 0.14,
    "feedback": 0.12,
    "milestones": 0.1,
}

TEXTS: Final = (
    '"', '""', '","', "a,b;c\td", "a\nb", "a\rb", "a\r\nb", "\r", "\n", "\r\n",
    "=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "=",
    " lead", "trail ", "two  spaces", "\u00a0", "\u3000x", "\u200b", "\ufeffbom",
    "\x00", "\x00\x00", "\x01\x02\x08\x0b\x0c\x0e\x1f", "\x7f\x80\x85\x9f", "\x1b[31mred",
    "_x0041_", "_x0041_x0042_", "_x0041\x01", "_x005F_", "_x005F_x0041_", "__x000D_", "_X0041_",
    "_x004", "_x00g1_", "_x0041_\r\n_x000A_", "\x01_x0001_\x01",
    "\ufffe\uffff\ufdd0", "]]>", "<b>&amp;&#10;&lt;</b>", "<!-- -->", "<?xml?>", "&", "%s{0}${x}",
    "שלום עולם", "مرحبا، العالم", "\u202eevil\u202c", "\u2067rtl\u2069 ltr", "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301", "ﷺ", "中文，全角", "ｆｕｌｌ＝", "𝕏𐍈", "\u2028\u2029\u0085",
    "# comment", "null", "true", "FALSE", "007", "1e5", "0x1F", "1.50", "12345678901234567890",
    "2024-01-01", "12:30", "1/2", "50%", "[1", "{", "{}", "#N/A", "#REF!", "\\u0041\\n\\", "NaN",
    "http://example.org/?a=b&c", "mailto:x@example.org", "C:\\x\\", "\\", "/", "'", "`",
)  # fmt: skip
"""Each of them is what somebody's program took for something else than text."""

_ALPHABET: Final = "abcXYZ019 ,;\"'\n\r\t\x00\x01\x0c\x1f=_x0041<>&\\/é中\u05d0\u202e\ufffe😀𐍈"
_WORDS: Final = (
    "the",
    "buddy",
    "met",
    "at",
    "café",
    "Zentral",
    "on",
    "a",
    "walk",
    "round",
    "harbour",
)

LONG: Final = 40_000
LONGS: Final = (
    "a" * LONG,
    "😀" * LONG,
    "a" * 32_766 + "😀" * (LONG - 32_766),  # the cut falls between two surrogates
    "_x0041_" * (LONG // 7),
    ("\x01\r\n" * LONG)[:LONG],
    ('",=' * LONG)[:LONG],
    "שלום" * (LONG // 4),
    "x" * 32_767,  # fits exactly
    "x" * 32_768,
)
"""Longer than a cell of Excel can be, but for one."""


class Records:
    """Makes the records of a seed: users, then matches, then what refers to them."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids: dict[str, list[str]] = {"users": [], "matches": []}
        self._number = 0

    def make(self, total: int) -> Iterator[tuple[str, Record]]:
        """So many records, each with its entity; references come before what refers to them."""
        counts = {entity: int(total * share) for entity, share in SHARES.items()}
        counts["users"] += total - sum(counts.values())
        for entity, count in counts.items():
            columns = ENTITIES[entity].columns
            makers = [(c.name, c.required, self._maker(entity, c)) for c in columns]
            long = self._long_places(entity, count)
            for at in range(count):
                self._number += 1
                record = {
                    name: make()
                    for name, required, make in makers
                    if required or self._random.random() < 0.7
                }
                if at in long:
                    record |= long[at]
                yield entity, record

    def _long_places(self, entity: str, count: int) -> dict[int, Record]:
        """In a few records each of the long texts, plain and within arrays and objects."""
        where: dict[Kind, Callable[[str], Any]] = {
            Kind.TEXT: lambda text: text,
            Kind.TEXTS: lambda text: ["", text],
            Kind.OBJECT: lambda text: {"a": [text]},
        }
        columns = [c for c in ENTITIES[entity].columns if c.kind in where and c.longest is None]
        places = self._random.sample(range(count), min(count, len(LONGS)))
        return {
            at: {c.name: where[c.kind](text) for c in self._random.sample(columns, 1)}
            for at, text in zip(places, LONGS, strict=False)
            if columns
        }

    def _maker(self, entity: str, column: Column) -> Callable[[], Any]:
        chance = self._random
        match column.kind:
            case Kind.UUID:
                return self._id_maker(entity, column)
            case Kind.EMAIL:
                return lambda: f"{chance.choice('+=-_x')}u{self._number}@example.org"
            case Kind.TIMESTAMP:
                return self._moment
            case Kind.ENUM:
                return lambda: chance.choice(column.values)
            case Kind.INTEGER if column.name in ENTITIES[entity].key:
                return lambda: self._number  # no key comes twice
            case Kind.INTEGER:
                return lambda: self._integer(column)
            case Kind.RATING:
                return lambda: chance.choice((0.0, 1.0, 0.5, 0.85, 1e-7, 5e-324, chance.random()))
            case Kind.TEXTS:
                return lambda: [self._text() for _ in range(chance.randrange(4))]
            case Kind.INTEGERS:
                return lambda: [chance.randint(1, 17) for _ in range(chance.randrange(4))]
            case Kind.OBJECT:
                return lambda: self._object(2)
            case Kind.TEXT:
                return lambda: self._text(blank=not column.required)[: column.longest or None]

    def _id_maker(self, entity: str, column: Column) -> Callable[[], str]:
        if column.refers_to is not None:
            known = self._ids[column.refers_to]
            return lambda: self._random.choice(known)
        own = self._ids.get(entity) if column.name == ENTITIES[entity].key[0] else None

        def new() -> str:
            made = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
            if own is not None:
                own.append(made)
            return made

        return new

    def _moment(self) -> str:
        chance = self._random
        day = f"{chance.randint(1, 2025):04}-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        time = f"{chance.randint(0, 23):02}:{chance.randint(0, 59):02}:{chance.randint(0, 59):02}"
        return f"{day}T{time}{chance.choice(('', '.000001', '.123456'))}Z"

    def _integer(self, column: Column) -> int:
        lowest, highest = column.lowest or 0, column.highest or 2**53 - 1
        most = self._random.choice((lowest, 9, 1_000, highest))
        return self._random.randint(lowest, max(most, lowest))

    def _text(self, *, blank: bool = True) -> str:
        chance = self._random
        kind = chance.random()
        if kind < 0.4:
            text = " ".join(chance.choices(_WORDS, k=chance.randint(1, 6)))
        elif kind < 0.8:
            text = chance.choice(TEXTS)
        else:
            text = "".join(chance.choices(_ALPHABET, k=chance.randint(1, 30)))
        return text if blank or not text.isspace() else f"{text}."

    def _object(self, depth: int) -> Record:
        chance = self._random
        return {self._text(): self._anything(depth) for _ in range(chance.randrange(4))}

    def _anything(self, depth: int) -> Any:
        chance = self._random
        kind = chance.randrange(7 if depth else 5)
        if kind < 2:
            return self._text()
        if kind < 5:
            return (chance.randint(-9, 2**60), chance.randint(0, 800) / 8, None, True, "")[
                chance.randrange(5)
            ]
        if kind == 5:
            return [self._anything(depth - 1) for _ in range(chance.randrange(3))]
        return self._object(depth - 1)


def encoded(record: Record) -> bytes:
    """As a sender writes it."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
