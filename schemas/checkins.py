"""Check-ins: docs/spec.md, section 6."""

from typing import Literal

from schemas.fields import FreeObject, Id, MatchId, Row, Text, Timestamp

Mood = Literal["great", "good", "okay", "struggling", "difficult"]


class Checkin(Row, kw_only=True, gc=False):
    """How a match is doing."""

    checkin_id: Id
    match_id: MatchId
    checkin_date: Timestamp
    mood: Mood | None = None
    notes: Text | None = None
    question_responses: FreeObject | None = None
