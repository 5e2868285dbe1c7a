"""Names of unknown fields: the first 50 of each entity, with counts."""

from __future__ import annotations

from worker.core.unknown import MOST_NAMED, UnknownNames


def test_the_first_names_are_counted_and_no_others() -> None:
    names = UnknownNames()
    names.note("users", [f"n{number}" for number in range(MOST_NAMED + 5)])
    names.note("users", ["n3", "late"])
    assert len(names.by_entity["users"]) == MOST_NAMED
    assert names.by_entity["users"]["n3"] == 2
    assert names.names() == {"users": [f"n{number}" for number in range(MOST_NAMED)]}
