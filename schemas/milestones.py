"""Milestones: docs/spec.md, section 8."""

from typing import Literal

from schemas.fields import Count, FreeObject, Positive, Row, Text, Timestamp, UserId

MilestoneCategory = Literal[
    "onboarding",
    "cultural",
    "language",
    "community",
    "professional",
    "skills",
    "events",
    "buddy-connection",
    "impact",
    "completion",
    "other",
]
TargetRole = Literal["participant", "buddy", "all"]


class Milestone(Row, kw_only=True, gc=False):
    """Something that a user has reached."""

    milestone_id: Positive
    user_id: UserId
    milestone_title: Text
    milestone_category: MilestoneCategory
    reached_at: Timestamp
    points: Count
    badge_icon: Text | None = None
    target_role: TargetRole | None = None
    progress: FreeObject | None = None
    metadata: FreeObject | None = None
