"""Feedback: docs/spec.md, section 7."""

from schemas.fields import Id, MatchId, Rating, Role, Row, Text, Timestamp


class Feedback(Row, kw_only=True, gc=False):
    """What one side of a match says about the other."""

    feedback_id: Id
    match_id: MatchId
    from_role: Role
    rating: Rating
    feedback_text: Text | None = None
    submitted_at: Timestamp
    communication: Rating | None = None
    helpfulness: Rating | None = None
    engagement: Rating | None = None
