"""The key of a record that is to be sent, where the record itself tells it."""

from __future__ import annotations

import pytest

from schemas import ENTITIES
from tests.unit.core_kit import good, to_json, uid
from worker.core.sending import KeyReader


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_good_record_tells_its_key(entity: str) -> None:
    record = good(entity, 7)
    key = ":".join(str(record[name]) for name in ENTITIES[entity].key)
    assert KeyReader(ENTITIES[entity]).read(to_json(record)) == key.encode()


def test_the_key_is_read_in_canonical_form() -> None:
    assert KeyReader(ENTITIES["users"]).read(to_json({"id": uid(10).upper()})) == uid(10).encode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        to_json({}),
        to_json({"id": None}),
        to_json({"id": ["x"]}),
        to_json({"id": "no uuid"}),
        b'{"id": "\\ud800"}',
        b'{"id": ' + b"9" * 5_000 + b"}",
    ],
)
def test_a_record_without_a_readable_key_is_sent_without_one(value: bytes | None) -> None:
    assert KeyReader(ENTITIES["users"]).read(value) is None
