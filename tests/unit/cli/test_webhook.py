"""The webhook of incidents: where its URL comes from, and the message that it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.connect_webhook import VARIABLE, webhook_of
from worker.core.topics import Names
from worker.desk.incidents import IncidentReport
from worker.desk.webhook import message
from worker.errors import ConfigurationError

NAMES = Names("buddy")
REPORT = IncidentReport(
    id=1,
    entity="users",
    what="rejections",
    since=1_764_547_200_000,
    opened=1_764_547_205_000,
    closed=None,
    usual=0.01,
    share=0.3,
    found=30,
    seen=100,
    violations=[("invalid_enum", "role")],
    producers=["crm"],
    examples=["buddy.rejected.users/0/1"],
)


def test_the_url_is_in_a_file_or_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("https://example.org/hook\n")
    assert webhook_of("", {}, NAMES) is None
    assert webhook_of(str(file), {}, NAMES) is not None
    assert webhook_of("", {VARIABLE: "http://example.org:9/x"}, NAMES) is not None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://secret",
        "secret",
        "https://",
        "https://" + "secret:x@example.org",
        "http://[secret",
        "x:0",
        "http://secret..example.org",
        "http://example.org/secret\nX: 1",
    ],
)
def test_what_is_no_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        webhook_of("", {VARIABLE: url}, NAMES)
    assert "secret" not in str(caught.value)
    assert VARIABLE in str(caught.value)


def test_the_message_is_one_of_alertmanager() -> None:
    labels = {
        "alertname": "BuddyRejections",
        "entity": "users",
        "prefix": "buddy",
        "severity": "warning",
    }
    annotations = {
        "summary": "30 % of users are rejected, 1.0 % before",
        "description": "since 2025-12-01T00:00:00Z; 30 of 100 records since then;"
        " violations: role: invalid_enum; producers: crm; for example buddy.rejected.users/0/1",
        "codes": "invalid_enum",
        "fields": "role",
        "producers": "crm",
    }
    assert message(REPORT, NAMES) == {
        "version": "4",
        "groupKey": '{}:{alertname="BuddyRejections", entity="users", prefix="buddy"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "buddy-desk",
        "groupLabels": {k: v for k, v in labels.items() if k != "severity"},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [
            {
                "status": "firing",
                "labels": labels,
                "annotations": annotations,
                "startsAt": "2025-12-01T00:00:00Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "",
                "fingerprint": message(REPORT, NAMES)["alerts"][0]["fingerprint"],
            }
        ],
    }
