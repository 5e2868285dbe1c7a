"""Tells a webhook of incidents, in the form in which Alertmanager tells its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final

import msgspec
import urllib3

from worker.core.topics import Names
from worker.desk.incidents import IncidentReport
from worker.desk.verdicts import REJECTIONS, UNKNOWN_FIELDS

_SECONDS: Final = 10.0
"""Longest time to connect, and longest wait for an answer."""
_WHOLE_SECONDS: Final = 20.0
"""Longest time for a message."""
_NEVER: Final = "0001-01-01T00:00:00Z"
"""What Alertmanager writes where something has not ended."""
NAMES: Final = {REJECTIONS: "BuddyRejections", UNKNOWN_FIELDS: "BuddyUnknownFields"}
"""The name of the alert, by what the incident is about."""


class WebhookFailed(Exception):
    """The webhook did not take a message. The text holds no part of its URL."""


class Webhook:
    """Sends messages to one URL. The URL is a secret: services put tokens into it."""

    def __init__(self, url: str, names: Names) -> None:
        self._url = url
        self._names = names
        self._pool = urllib3.PoolManager(timeout=_SECONDS, retries=False)

    async def send(self, report: IncidentReport) -> IncidentReport:
        """Send one state of an incident, and return it. Raises WebhookFailed unless it is taken."""
        body = msgspec.json.encode(message(report, self._names))
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[None] = loop.create_future()

        def run() -> None:
            error = self._post(body)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_set, outcome, error)

        # Not in the pool, which a process waits for at its end: a server may never answer.
        threading.Thread(target=run, name="webhook", daemon=True).start()
        try:
            async with asyncio.timeout(_WHOLE_SECONDS):
                await outcome
        except TimeoutError:  # it answers a byte at a time
            raise WebhookFailed(f"has not answered for {_WHOLE_SECONDS:.0f} s") from None
        return report

    def _post(self, body: bytes) -> WebhookFailed | None:
        kind = {"Content-Type": "application/json"}
        try:
            answer = self._pool.request(
                "POST", self._url, body=body, headers=kind, preload_content=False
            )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            return WebhookFailed(f"cannot be reached ({type(error).__name__})")
        answer.close()  # whatever it says is not read: it may have no end
        if 200 <= answer.status < 300:
            return None
        return WebhookFailed(f"answers {answer.status}")


def _set(outcome: asyncio.Future[None], error: WebhookFailed | None) -> None:
    if outcome.cancelled():
        return
    if error is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(error)


def message(report: IncidentReport, names: Names) -> dict[str, Any]:
    """The message, in version 4 of Alertmanager's format. Pure.

    `fingerprint` is the same for opening and closing of an incident, and in a repetition.
    """
    name = NAMES[report.what]
    # What stands out may change, and receivers tell alerts apart by their labels.
    group = {"alertname": name, "entity": report.entity, "prefix": names.prefix}
    labels = {**group, "severity": "warning"}
    status = "firing" if report.closed is None else "resolved"
    annotations = {
        "summary": headline(report),
        "description": "; ".join(details(report)),
        "codes": ", ".join(dict.fromkeys(code for code, _ in report.violations)),
        "fields": ", ".join(dict.fromkeys([f for _, f in report.violations] + report.names)),
        "producers": ", ".join(report.producers),
    }
    identity = f"{names.prefix} {report.entity} {report.what} {report.opened}"
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": _time(report.since),
        "endsAt": _NEVER if report.closed is None else _time(report.closed),
        "generatorURL": "",
        "fingerprint": blake2b(identity.encode(), digest_size=8).hexdigest(),
    }
    matched = ", ".join(f'{label}="{value}"' for label, value in group.items())
    return {
        "version": "4",
        "groupKey": f"{{}}:{{{matched}}}",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "buddy-desk",
        "groupLabels": group,
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }


def headline(report: IncidentReport) -> str:
    """An incident in one line: `31 % of users are rejected, 1 % before`."""
    is_open = report.closed is None
    share = report.share if is_open else report.found / max(1, report.seen)
    if report.what == UNKNOWN_FIELDS:
        what = f"{'have' if is_open else 'had'} fields that no column is for"
    else:
        what = f"{'are' if is_open else 'were'} rejected"
    return f"{_percent(share)} of {report.entity} {what}, {_percent(report.usual)} before"


def details(report: IncidentReport) -> list[str]:
    """What stands out, a line each."""
    lines = [f"since {_time(report.since)}"]
    if report.closed is not None:
        lines.append(f"over at {_time(report.closed)}")
    lines.append(f"{report.found} of {report.seen} records since then")
    if report.names:
        lines.append(f"fields: {', '.join(report.names)}")
    if report.violations:
        lines.append(
            "violations: "
            + ", ".join(f"{field}: {code}" if field else code for code, field in report.violations)
        )
    if report.producers:
        lines.append(f"producers: {', '.join(report.producers)}")
    if report.partitions:
        lines.append(f"input partitions: {', '.join(map(str, report.partitions))}")
    if report.examples:
        lines.append(f"for example {', '.join(report.examples)}")
    return lines


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.1 else f"{100 * share:.1f} %"


def _time(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
