"""Names of unknown fields: the first 50 of each entity, with counts."""

from __future__ import annotations

import json

from tests.unit.core.test_round import Worker
from tests.unit.core_kit import good
from worker.core.outbox import UNKNOWN_HEADER
from worker.core.unknown import MOST_NAMED, UnknownNames


def test_the_first_names_are_counted_and_no_others() -> None:
    names = UnknownNames()
    names.note("users", [f"n{number}" for number in range(MOST_NAMED + 5)])
    names.note("users", ["n3", "late"])
    assert len(names.by_entity["users"]) == MOST_NAMED
    assert names.by_entity["users"]["n3"] == 2
    assert names.names() == {"users": [f"n{number}" for number in range(MOST_NAMED)]}


def test_a_row_names_the_first_ten_fields_that_it_lacks() -> None:
    worker = Worker()
    worker.send(0, "users", good("users", 1))
    worker.send(0, "users", good("users", 2) | {"tel": 1, **{f"n{n}": n for n in range(20)}})
    rows = [m for m in worker.round().outputs if m.topic.endswith("accepted.users")]
    found = [json.loads(dict(row.headers).get(UNKNOWN_HEADER, b"null")) for row in rows]
    assert found == [None, ["tel", *(f"n{n}" for n in range(9))]]
