"""`buddy status`: exact counts of a known mix, who works, and an exit code that says so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from schemas import ENTITIES
from tests.acceptance.kit import Another, Buddy, Result, Service, eventually
from tests.acceptance.material import sendable, split, user, write, write_rows
from worker.core.violations import WARNINGS
from worker.demo.record import Record

pytestmark = pytest.mark.acceptance

NOBODY = 8
ORPHAN = {
    "match_id": "11111111-1111-4111-8111-111111111111",
    "participant_id": "22222222-2222-4222-8222-222222222222",
    "buddy_id": "33333333-3333-4333-8333-333333333333",
    "matched_at": "2024-02-01T10:00:00Z",
    "status": "active",
}


def status(buddy: Buddy) -> Any:
    return buddy.run("status", "--json").succeeded().json


def counts(found: Any, *columns: str) -> dict[str, tuple[int, ...]]:
    """By entity, without those of which all are zero."""
    every = {e: tuple(found["entities"][e][c] for c in columns) for e in ENTITIES}
    return {entity: numbers for entity, numbers in every.items() if any(numbers)}


def outcomes(records: list[Record]) -> dict[str, tuple[int, int]]:
    """How many of them are to be accepted and rejected, by entity."""
    rejected = Counter(r.entity for r in records if set(r.expect) - WARNINGS)
    every = Counter(r.entity for r in records)
    return {entity: (n - rejected[entity], rejected[entity]) for entity, n in every.items()}


def nobody_works(result: Result, says: str) -> None:
    line = result.complained(NOBODY)
    assert says in line
    assert result.out == ""


def test_counts_are_exactly_what_was_sent(another: Another, tmp_path: Path) -> None:
    buddy = another(grace_seconds=2)
    records, _ = split(sendable(400, seed=9, bad_share=0.2))
    sent = Counter(record.entity for record in records)
    buddy.run("send", write(tmp_path / "records", records)).succeeded()
    waiting = buddy.run("status", "--json")
    assert waiting.code == NOBODY
    assert waiting.json["trouble"] in waiting.err
    assert counts(waiting.json, "lag", "read") == {entity: (n, 0) for entity, n in sent.items()}

    service = buddy.start("run").ready()
    gone = user()  # to whom nothing refers
    write_rows(buddy.directory, {"users": [gone]})
    buddy.run("send", "users.ndjson").succeeded()
    buddy.run("delete", "users", str(gone["id"])).succeeded()
    eventually(lambda: is_done(status(buddy)), "all is judged")
    done = status(buddy)
    expected = outcomes(records)
    expected["users"] = (expected["users"][0] + 1, expected["users"][1])
    assert counts(done, "accepted", "rejected") == expected
    assert counts(done, "deleted") == {"users": (1,)}
    sent["users"] += 2  # with the deletion
    assert counts(done, "read") == {entity: (n,) for entity, n in sent.items()}
    belongs_to(service, done)
    service.stop().succeeded()
    nobody_works(buddy.run("status", "--quiet"), "no worker is running")
    nobody_works(buddy.run("status", "--quiet", "--service", "sink"), "no sink is running")


def test_counts_outlive_a_kill_and_parked_records_are_told(local: Buddy) -> None:
    local.run("topics", "create").succeeded()
    write_rows(local.directory, {"users": [user(), user(role="nosuch")], "matches": [ORPHAN]})
    killed = local.start("run", env={"BUDDY_GRACE_SECONDS": "300"}).ready()
    local.run("send", "users.ndjson", "--wait")
    local.run("send", "matches.ndjson").succeeded()
    eventually(lambda: status(local)["entities"]["matches"]["parked"] == 1, "the orphan is parked")
    killed.kill()
    nobody_works(local.run("status", "--quiet"), "no worker is running")
    service = local.start("run", env={"BUDDY_GRACE_SECONDS": "300"}).ready()
    local.run("send", "users.ndjson", "--wait")
    found = status(local)
    service.stop().succeeded()
    assert counts(found, "read", "accepted", "rejected", "parked") == {
        "users": (4, 2, 2, 0),
        "matches": (1, 0, 0, 1),
    }
    assert found["oldest_parked"] is not None
    belongs_to(service, found)


def is_done(found: Any) -> bool:
    return found["entities"]["users"]["deleted"] == 1 and not counts(found, "lag", "parked")


def belongs_to(service: Service, found: Any) -> None:
    """All tasks are that process's, of which they have heard; it is the active sink as well."""
    (worker,) = found["workers"]
    (sink,) = found["sinks"]
    assert sink["active"]
    assert worker["tasks"] == [task["task"] for task in found["tasks"]]
    for task in found["tasks"]:
        assert task["owner"] == worker["name"]
        if task["committed"] is not None:
            assert task["since"] <= task["committed"]
    workers = {task["worker"] for task in found["tasks"] if task["worker"] is not None}
    assert any(worker.endswith(f"/{service.process.pid}") for worker in workers)
    assert found["incidents"] == {}
    assert found["unreadable_progress"] == 0


def test_a_container_of_one_service_asks_for_that_one(local: Buddy) -> None:
    local.run("topics", "create").succeeded()
    sink = local.start("sink").ready()
    quiet = local.run("status", "--quiet", "--service", "sink").succeeded()
    assert quiet.out == quiet.err == ""
    nobody_works(local.run("status", "--quiet"), "no worker is running")
    sink.stop().succeeded()


def test_a_look_makes_nothing(local: Buddy) -> None:
    assert "There is no log in" in local.run("status").complained(4)
    assert list(local.directory.iterdir()) == []
    local.run("topics", "create").succeeded()
    before = sorted(local.directory.rglob("*"))
    shown = local.run("status")
    assert shown.code == NOBODY
    assert all(entity in shown.out for entity in ENTITIES)
    assert sorted(local.directory.rglob("*")) == before


def test_settings_of_topics_that_do_not_suit_are_told_beside_who_works(local: Buddy) -> None:
    """As if the limits of topics had been lowered under the worker."""
    service = local.start("worker").ready()
    larger = {"BUDDY_MAX_RECORD_BYTES": "16777216"}
    asked = f"topic {local.names.input('users')} takes messages of"
    assert f"Topics: {asked}" in local.run("status", env=larger).succeeded().out
    found = local.run("status", "--json", env=larger).succeeded().json
    assert (found["trouble"], found["topics"][: len(asked)]) == (None, asked)
    assert found["workers"]
    assert status(local)["topics"] is None
    service.stop().succeeded()
    assert asked in local.run("status", env=larger).complained(3)
