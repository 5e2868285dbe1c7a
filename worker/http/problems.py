"""Errors of the HTTP API: problem details (RFC 9457), one line for people and a code for programs.

No text quotes a record, a header or a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

from worker.errors import (
    WAITED_OUT,
    BuddyError,
    Fenced,
    MessageRefused,
    MissingTopic,
    NoAnswer,
    ReplayTakenOver,
    StateError,
    UsageError,
)

MEDIA_TYPE: Final = "application/problem+json"
_UNAVAILABLE: Final = 503
RETRY_SECONDS: Final = 5
"""What `Retry-After` says while the broker is away."""

_STATUSES: Final[tuple[tuple[type[BuddyError], int, str], ...]] = (
    (UsageError, 400, "malformed_body"),
    (MessageRefused, 413, "refused_by_broker"),
    (NoAnswer, 504, "no_answer"),
    (MissingTopic, 503, "missing_topic"),
    (Fenced, 409, "taken_over"),
    (ReplayTakenOver, 409, "taken_over"),
    *((kind, 503, "broker_unavailable") for kind in WAITED_OUT),
    (StateError, 503, "state_unusable"),
)


class Problem(Exception):
    """An answer that is an error. `members` are further members of the problem details."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def response(self) -> Response:
        """The response, in the form of RFC 9457."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            **self.members,
        }
        return Response(msgspec.json.encode(body), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: BuddyError, members: Mapping[str, object] | None = None) -> Problem:
    """The problem that an error of the project is for a client."""
    status, code = next(
        ((status, code) for kind, status, code in _STATUSES if isinstance(error, kind)),
        (500, "internal_error"),
    )
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == _UNAVAILABLE else {}
    return Problem(status, code, str(error), headers=headers, members=members)
