"""Skill sessions: docs/spec.md, section 5 (19 columns, `match_id` and `scheduled_at` included)."""

from typing import Literal

from schemas.fields import (
    Format,
    Id,
    MatchId,
    Positive,
    Rating,
    Row,
    SdgGoals,
    Text,
    Timestamp,
    UserId,
)

Proficiency = Literal["beginner", "intermediate", "advanced"]
Progress = Literal["no-progress", "some-progress", "good-progress", "excellent-progress"]


class SkillSession(Row, kw_only=True, gc=False):
    """One user teaching another."""

    session_id: Id
    skill_id: Positive
    skill_name: Text
    skill_category: Text | None = None
    teacher_id: UserId
    learner_id: UserId
    match_id: MatchId | None = None
    completed_at: Timestamp
    scheduled_at: Timestamp | None = None
    duration_minutes: Positive | None = None
    format: Format | None = None
    proficiency_level: Proficiency | None = None
    teacher_rating: Rating | None = None
    learner_rating: Rating | None = None
    teacher_comment: Text | None = None
    learner_comment: Text | None = None
    learner_progress: Progress | None = None
    sdg_goals: SdgGoals | None = None
    valuation_points: Positive | None = None
