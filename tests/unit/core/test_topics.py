"""Names and settings of the topics: docs/contract.md, "Topics"."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas import ENTITIES
from worker.core.topics import Names, complaints, largest_value, wanted
from worker.stream import Topic

LIMIT = 1024 * 1024
DAY_MS = 24 * 3600 * 1000
NAMES = Names()


def topics(**changes: dict[str, Any]) -> dict[str, Topic]:
    """All topics as they should be with 4 partitions, except for the changes."""
    there = wanted(NAMES, 4, LIMIT)
    for part, settings in changes.items():
        name = f"buddy.{part.replace('__', '.')}"
        there[name] = msgspec.structs.replace(there[name], **settings)
    return there


def found(there: dict[str, Topic], limit: int = LIMIT) -> list[str]:
    return list(complaints(NAMES, there, limit))


def test_names_are_those_of_the_contract() -> None:
    assert NAMES.input("users") == "buddy.in.users"
    assert NAMES.accepted("event_attendance") == "buddy.accepted.event_attendance"
    assert NAMES.rejected("checkins") == "buddy.rejected.checkins"
    assert NAMES.exports == "buddy.exports"
    assert NAMES.export_requests == "buddy.export-requests"
    assert NAMES.parked.startswith("buddy.internal.")
    assert NAMES.progress.startswith("buddy.internal.")


def test_the_prefix_is_configurable_everywhere() -> None:
    assert all(name.startswith("other.team.") for name in Names("other.team").every())


def test_every_name_is_there_once_inputs_first() -> None:
    names = list(NAMES.every())
    assert len(names) == len(set(names))
    assert names[: len(ENTITIES)] == [NAMES.input(entity) for entity in ENTITIES]


@pytest.mark.parametrize("prefix", ["buddy", "a.b", "in.accepted"])
def test_the_entity_of_a_topic_is_found_again(prefix: str) -> None:
    names = Names(prefix)
    for entity in ENTITIES:
        for topic in (names.input(entity), names.accepted(entity), names.rejected(entity)):
            assert names.entity_of(topic) == entity


def test_wanted_topics_are_those_of_the_contract() -> None:
    there = wanted(NAMES, 4, LIMIT)
    assert set(there) == set(NAMES.every())
    enlarged = LIMIT * 4 / 3 + 64 * 1024
    for entity in ENTITIES:
        inputs = there[NAMES.input(entity)]
        assert (inputs.partitions, inputs.append_time, inputs.compacted) == (4, True, False)
        assert inputs.max_message_bytes >= LIMIT
        accepted = there[NAMES.accepted(entity)]
        assert accepted.compacted
        assert accepted.delete_retention_ms == 7 * DAY_MS
        rejected = there[NAMES.rejected(entity)]
        assert rejected.retention_ms == 30 * DAY_MS
        assert rejected.max_message_bytes >= int(enlarged)
    for name in (NAMES.parked, NAMES.progress, NAMES.granted):
        assert there[name].compacted
        assert there[name].delete_retention_ms == 7 * DAY_MS
    internal = [topic for name, topic in there.items() if name.startswith("buddy.internal.")]
    single = {topic.name for topic in internal if topic.partitions != 4}
    assert single == {NAMES.schedules, NAMES.receipts}
    assert (there[NAMES.schedules].partitions, there[NAMES.schedules].compacted) == (1, True)
    assert there[NAMES.parked].max_message_bytes >= int(enlarged)


@pytest.mark.parametrize("partitions", [1, 4, 100])
@pytest.mark.parametrize("limit", [1000, LIMIT, 10 * LIMIT])
def test_topics_as_created_raise_no_complaint(partitions: int, limit: int) -> None:
    assert not list(complaints(NAMES, wanted(NAMES, partitions, limit), limit))


def test_settings_that_are_better_than_needed_raise_no_complaint() -> None:
    there = {
        name: msgspec.structs.replace(
            topic, max_message_bytes=10 * LIMIT, delete_retention_ms=30 * DAY_MS, retention_ms=None
        )
        for name, topic in topics().items()
        if ".in." not in name
    }
    assert not found(topics() | there)


@pytest.mark.parametrize("entity", ["users", "checkins"])
def test_what_an_input_takes_the_others_have_to_bear(entity: str) -> None:
    lines = found(topics(**{f"in__{entity}": {"max_message_bytes": 2 * LIMIT}}))
    needed = (2 * LIMIT - 64 * 1024) * 4 // 3 + 64 * 1024
    topics_named = {f"buddy.rejected.{entity}"} | {
        f"buddy.internal.{name}" for name in ("parked", "progress", "claims", "grants", "granted")
    }
    assert {line.split()[1] for line in lines} == topics_named
    for line in lines:
        assert f"buddy.in.{entity} takes {2 * LIMIT}" in line
        assert f"max.message.bytes={needed} or more" in line


def test_what_is_too_small_has_one_line() -> None:
    change = {"in__users": {"max_message_bytes": 2 * LIMIT}}
    change["rejected__users"] = {"max_message_bytes": 1000}
    lines = found(topics(**change))
    assert sum("buddy.rejected.users" in line for line in lines) == 1


def test_a_missing_topic_is_one_line_that_says_what_to_run() -> None:
    there = topics()
    del there["buddy.in.checkins"]
    [line] = found(there)
    assert "buddy.in.checkins is missing" in line
    assert "buddy topics create" in line


def test_missing_topics_are_one_line_with_their_number() -> None:
    [line] = found({})
    assert f"buddy.in.users is missing (and {len(list(NAMES.every())) - 1} more)" in line
    assert "buddy topics create" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in__matches": {"partitions": 3}}, "buddy.in.matches has 3 partitions"),
        ({"accepted__events": {"partitions": 5}}, "buddy.accepted.events has 5 partitions"),
        ({"internal__parked": {"partitions": 1}}, "buddy.internal.parked has 1 partitions"),
        ({"internal__progress": {"partitions": 8}}, "buddy.internal.progress has 8 partitions"),
        ({"internal__claims": {"partitions": 2}}, "buddy.internal.claims has 2 partitions"),
        ({"internal__granted": {"compacted": False}}, "cleanup.policy=compact"),
        ({"accepted__users": {"retention_ms": DAY_MS}}, "removes what is needed: set cleanup"),
        ({"internal__schedules": {"retention_ms": DAY_MS}}, "cleanup.policy=compact alone"),
        ({"in__users": {"append_time": False}}, "message.timestamp.type=LogAppendTime"),
        ({"in__milestones": {"append_time": False}}, "message.timestamp.type=LogAppendTime"),
        ({"accepted__users": {"compacted": False}}, "cleanup.policy=compact"),
        ({"in__users": {"compacted": True}}, "cleanup.policy=delete"),
        ({"rejected__events": {"compacted": True}}, "cleanup.policy=delete"),
        ({"internal__claims": {"compacted": True}}, "cleanup.policy=delete"),
        ({"internal__grants": {"compacted": True}}, "cleanup.policy=delete"),
        ({"internal__parked": {"compacted": False}}, "cleanup.policy=compact"),
        ({"internal__progress": {"compacted": False}}, "cleanup.policy=compact"),
        (
            {"accepted__matches": {"delete_retention_ms": DAY_MS}},
            f"delete.retention.ms={7 * DAY_MS}",
        ),
        (
            {"internal__parked": {"delete_retention_ms": DAY_MS}},
            f"delete.retention.ms={7 * DAY_MS}",
        ),
        ({"rejected__feedback": {"max_message_bytes": LIMIT}}, "max.message.bytes="),
        ({"internal__parked": {"max_message_bytes": LIMIT}}, "max.message.bytes="),
        ({"accepted__events": {"max_message_bytes": LIMIT}}, "max.message.bytes="),
        ({"in__events": {"max_message_bytes": LIMIT - 1}}, "max.message.bytes="),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_topic_and_change(
    change: dict[str, dict[str, Any]], words: str
) -> None:
    [line] = found(topics(**change))
    assert words in line
    assert "\n" not in line
    assert f"buddy.{next(iter(change)).replace('__', '.')}" in line


def test_every_wrong_topic_has_its_line() -> None:
    change = {f"in__{entity}": {"append_time": False} for entity in ENTITIES}
    assert len(found(topics(**change))) == len(ENTITIES)


def test_a_larger_record_limit_asks_for_larger_topics() -> None:
    lines = found(topics(), 2 * LIMIT)
    assert any("buddy.rejected.users" in line for line in lines)
    assert any("buddy.in.users" in line for line in lines)


def test_with_one_input_partition_more_partitions_elsewhere_are_no_match() -> None:
    there = wanted(NAMES, 1, LIMIT)
    name = NAMES.input("matches")
    there[name] = msgspec.structs.replace(there[name], partitions=4)
    [line] = found(there)
    assert "buddy.in.matches has 4 partitions" in line


def test_rejections_kept_too_short_a_time_are_complained_about() -> None:
    [line] = found(topics(rejected__users={"retention_ms": DAY_MS}))
    assert "buddy.rejected.users" in line
    assert f"retention.ms={30 * DAY_MS}" in line


def test_the_state_of_tasks_is_in_four_topics() -> None:
    assert NAMES.of_state() == (NAMES.progress, NAMES.parked, NAMES.granted, NAMES.owners)


def test_the_largest_value_is_what_the_narrowest_topic_of_records_takes() -> None:
    there = wanted(NAMES, 1, 1024 * 1024)
    usual = largest_value(NAMES, there)
    narrow = NAMES.rejected("users")
    there[narrow] = msgspec.structs.replace(there[narrow], max_message_bytes=100_000)
    assert usual > largest_value(NAMES, there) == 100_000 - 4 * 1024


def test_receipts_kept_too_short_a_time_are_complained_about() -> None:
    [line] = found(topics(internal__receipts={"retention_ms": DAY_MS // 2}))
    assert line.startswith("topic buddy.internal.receipts keeps receipts too short a time")
    [line] = found(topics(internal__receipts={"compacted": True}))
    assert "internal.receipts is compacted" in line


def test_audits_are_kept_longer_than_rejections() -> None:
    """Else a record could be sent again whose audit is gone."""
    there = topics()
    kept, rejections = (
        there[NAMES.replays].retention_ms,
        there[NAMES.rejected("users")].retention_ms,
    )
    assert kept is not None
    assert rejections is not None
    assert kept >= rejections + 7 * DAY_MS
    [line] = found(topics(replays={"retention_ms": 30 * DAY_MS}))
    assert line.startswith("topic buddy.replays keeps audits too short a time: set retention.ms=")
    assert found(topics(replays={"retention_ms": None})) == []
