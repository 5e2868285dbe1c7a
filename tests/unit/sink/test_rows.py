"""The users that a row refers to, as the sink's store keeps them."""

from __future__ import annotations

from uuid import UUID

from schemas import ENTITIES
from tests.unit.rows_kit import match, milestone, uuid
from worker.accepted import rule_of
from worker.sink.store.rows import Referring


def test_a_match_brings_the_ids_of_its_users() -> None:
    key, value = match(2, 1, 3)
    row = rule_of("matches").read(key, value)
    found = Referring(ENTITIES["matches"]).users(row)
    assert found == UUID(uuid(1)).bytes + UUID(uuid(3)).bytes


def test_what_nothing_refers_to_brings_none() -> None:
    row = rule_of("milestones").read(*milestone(10, 1))
    assert Referring(ENTITIES["milestones"]).users(row) == b""
