"""Informal events of a match: docs/spec.md, section 3."""

from schemas.fields import Attendees, Id, MatchId, Row, Text, Timestamp


class Event(Row, kw_only=True, gc=False):
    """Something that a match did together."""

    event_id: Id
    match_id: MatchId
    event_type: Text
    event_date: Timestamp
    description: Text | None = None
    location: Text | None = None
    attendees: Attendees | None = None
