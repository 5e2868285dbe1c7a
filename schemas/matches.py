"""Buddy matches: docs/spec.md, section 2."""

from typing import Literal

from schemas.fields import Count, Id, Positive, Row, Timestamp, UserId

Status = Literal["active", "inactive", "ended"]
EndReason = Literal[
    "completed",
    "participant_request",
    "buddy_request",
    "mutual_agreement",
    "inactivity",
    "violation",
    "program_ended",
    "other",
]


class Match(Row, kw_only=True, gc=False):
    """A participant and a buddy who meet."""

    match_id: Id
    participant_id: UserId
    buddy_id: UserId
    matched_at: Timestamp
    status: Status
    ended_at: Timestamp | None = None
    end_reason: EndReason | None = None
    duration_days: Positive | None = None
    sessions_completed: Count | None = None
    events_attended: Count | None = None
