"""Logs: a JSON document a line where no terminal is, and never the data of a person in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.kit import Another, Buddy
from tests.acceptance.material import sendable, split, user, write, write_rows

pytestmark = pytest.mark.acceptance


def words_of(value: object) -> set[str]:
    """Every text in a record that could tell who it is about."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, list):
        return set().union(*map(words_of, value)) if value else set()
    if isinstance(value, dict):
        return set().union(*map(words_of, value.values())) if value else set()
    return set()


PRIVATE = (
    "email", "first_name", "last_name", "location", "interests", "notes", "description",
    "feedback_text", "teacher_comment", "learner_comment", "question_responses", "attendees",
)  # fmt: skip


def test_no_log_line_holds_what_a_record_says(another: Another, tmp_path: Path) -> None:
    buddy = another(grace_seconds=1, log_level="debug")
    records, claims = split(sendable(1_000, seed=13, bad_share=0.3))
    secret = user(first_name="Geheimnis", email="geheimnis@example.org", phone="geheimnis")
    bad = [
        {**secret, "role": "geheimnis", "joined_at": "geheimnis"},
        {**user(), "email": "geheimnis", "id": "geheimnis", "interests": ["geheimnis", 1]},
        {**user(), "first_name": {"geheimnis": "geheimnis"}, "nickname": "geheimnis"},
    ]
    services = [buddy.elsewhere("a").start("worker").ready(), buddy.start("sink").ready()]
    commands = [
        buddy.run("send", write(tmp_path / "records", records), "--wait"),
        buddy.run("send", write(tmp_path / "claims", claims), "--wait"),
        buddy.run("send", write_rows(tmp_path / "bad", {"users": [secret, *bad]}), "--wait"),
        buddy.run("export", "--wait").succeeded(),
        buddy.run("rejections", "summary").succeeded(),
        buddy.run("check", tmp_path / "bad"),
    ]
    for service in services:
        service.stop().succeeded()

    texts = {"geheimnis"}
    for record in (r for r in records if not r.expect and r.value):
        row = json.loads(record.value or b"")
        texts |= {w for name in PRIVATE if name in row for w in words_of(row[name])}
    # Short words and ids occur in any log.
    texts = {t.lower() for t in texts if len(t) > 5 and not re.fullmatch(r"[0-9a-f-]{36}", t)}
    assert len(texts) > 200
    logs = "".join("".join(service.lines) for service in services).lower()
    assert logs.count("\n") > 30
    assert [text for text in texts if text in logs] == []
    printed = "".join(c.out + c.err for c in commands).lower()
    assert "geheimnis" not in printed


def test_every_line_is_a_json_document_with_an_event(local: Buddy) -> None:
    buddy = local
    write_rows(buddy.directory, {"users": [user(), user(role="nosuch"), user(extra=1)]})
    service = buddy.start("run").ready()
    buddy.run("send", "users.ndjson", "--wait")
    buddy.run("export", "--wait").succeeded()
    service.stop().succeeded()
    assert not service.complaints
    for event in service.events:
        assert {"event", "level", "timestamp"} <= event.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", event["timestamp"])
    names = {event["event"] for event in service.events}
    wanted = {"worker_ready", "task_started", "violations", "export_finished", "stopping"}
    assert wanted <= names
    (found,) = service.logged("violations")
    assert (found["count"], found["found"]) == (1, {"users.role.invalid_enum": 1})


def test_the_level_is_respected(local: Buddy) -> None:
    buddy = local.elsewhere("here", log_level="error")
    buddy.run("topics", "create").succeeded()
    write_rows(buddy.directory, {"users": [user(role="nosuch")]})
    service = buddy.start("run")
    buddy.run("send", "users.ndjson", "--wait")
    service.stop().succeeded()
    assert service.lines == []
