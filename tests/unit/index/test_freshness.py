"""docs/contract.md, "State on disk", rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from worker.index.freshness import SavedIndex, reason_to_rebuild
from worker.stream import OffsetRange, Partition, Topic

DAY = 24 * 3600 * 1000
NOW = 1_000 * DAY
USERS, MATCHES = "buddy.accepted.users", "buddy.accepted.matches"
TOPICS = {
    name: Topic(name, 2, compacted=True, delete_retention_ms=7 * DAY) for name in (USERS, MATCHES)
}
PARTITIONS = [Partition(name, number) for name in TOPICS for number in range(2)]
SPANS = dict.fromkeys(PARTITIONS, OffsetRange(10, 100))
FIRST = PARTITIONS[0]
HALF = 7 * DAY // 2


def judge(
    *,
    version: int | None = 1,
    last_current: int | None = NOW - 1,
    moved: dict[Partition, int] | None = None,
    positions: dict[Partition, int] | None = None,
    topics: dict[str, Topic] | None = None,
    before: dict[str, str] | None = None,
    identities: dict[str, str] | None = None,
    gone_to: int = 0,
    noted: dict[Partition, int] | None = None,
) -> str | None:
    if positions is None:
        positions = dict.fromkeys(PARTITIONS, 50) | (moved or {})
    saved = SavedIndex(version, last_current, positions, before or {}, tombstones=noted or {})
    spans = SPANS | {FIRST: SPANS[FIRST]._replace(tombstones_from=gone_to)}
    return reason_to_rebuild(
        saved, topics or TOPICS, spans, NOW, version=1, identities=identities or {}
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version unknown"),
        ({"version": None, "positions": {}}, "version unknown"),
        ({"last_current": None}, "does not say"),
        ({"last_current": NOW - HALF - 1}, "last current 84.0 h ago"),
        ({"last_current": NOW + HALF + 1}, "in the future"),
        ({"last_current": 0}, "deletions may be gone"),
        ({"moved": {FIRST: 101}}, "ends at 100, before position 101"),
        ({"moved": {FIRST: 9}}, "begins at 10, after position 9"),
        ({"gone_to": 51}, f"partition 0 of topic {USERS} has lost deletions before offset 51 to"),
        ({"gone_to": 51, "noted": {FIRST: 50}}, "after position 50: they were not read"),
        ({"gone_to": 51, "noted": {PARTITIONS[1]: 99}}, "has lost deletions"),
        ({"topics": {**TOPICS, USERS: Topic(USERS, 3)}}, "had 2 partitions and has 3"),
        ({"topics": {**TOPICS, USERS: Topic(USERS, 1)}}, "had 2 partitions and has 1"),
        ({"topics": {USERS: TOPICS[USERS]}}, f"made of topic {MATCHES}"),
        ({"moved": {Partition("old.accepted.users", 0): 1}}, "made of topic old.accepted.users"),
        ({"before": {USERS: "a"}, "identities": {USERS: "b"}}, f"{USERS} was created anew"),
        (
            {
                "topics": {**TOPICS, USERS: Topic(USERS, 2, delete_retention_ms=DAY)},
                "last_current": NOW - DAY,
            },
            "after 12.0 h",
        ),
    ],
)
def test_what_cannot_be_trusted_is_rebuilt(case: dict[str, Any], words: str) -> None:
    reason = judge(**case)
    assert reason is not None
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"last_current": NOW - HALF},
        {"last_current": NOW + HALF},
        {"before": {USERS: "a", MATCHES: "b"}, "identities": {USERS: "a", MATCHES: "b"}},
        {"before": {USERS: "a"}, "identities": {MATCHES: "b"}},
        {"before": {USERS: "a", MATCHES: ""}, "identities": {USERS: "", MATCHES: "b"}},
        {"positions": {}, "before": {USERS: "a"}, "identities": {USERS: "b"}},
        {"moved": {FIRST: 10}},
        {"moved": {FIRST: 100}},
        {"gone_to": 50},
        {"gone_to": 51, "moved": {FIRST: 51}},
        {"gone_to": 51, "noted": {FIRST: 51}},
        {"gone_to": 51, "noted": {FIRST: 60}},
        {"gone_to": 51, "positions": {}},
        {"positions": {}, "last_current": None},
        {"positions": {}, "last_current": 0},
        {"positions": {FIRST: 50, PARTITIONS[1]: 50}},
    ],
)
def test_what_can_be_trusted_goes_on(case: dict[str, Any]) -> None:
    assert judge(**case) is None
