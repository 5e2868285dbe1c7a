"""Attendance of formal events: docs/spec.md, section 4."""

from typing import Literal

from schemas.fields import (
    Format,
    Id,
    MatchId,
    Positive,
    Row,
    SdgGoals,
    Text,
    Texts,
    Timestamp,
    UserId,
)

EventType = Literal[
    "cultural",
    "educational",
    "professional",
    "social",
    "support",
    "recreational",
    "language",
    "other",
]


class EventAttendance(Row, kw_only=True, gc=False):
    """One user at one formal event."""

    event_id: Id
    user_id: UserId
    match_id: MatchId | None = None
    event_title: Text
    event_type: EventType
    event_format: Format
    attended_at: Timestamp
    location: Text | None = None
    duration_minutes: Positive | None = None
    attendee_count: Positive | None = None
    organizer: Text | None = None
    categories: Texts | None = None
    sdg_goals: SdgGoals | None = None
