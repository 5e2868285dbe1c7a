"""One made-up record, and the specification of the fields, written by hand.

The fields are deliberately not taken from `schemas`, so that the demo's expectations do not depend
on the code under test.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

import msgspec

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the demo.

    `key` is the message key, canonical unless the key itself is the fault. It is None if the
    record has no readable key. `value` is the JSON exactly as sent; None is a deletion. `expect`
    holds the distinct codes of all violations, in column order. An empty `expect` means that the
    record is accepted without a warning.
    """

    entity: str
    key: str | None
    value: bytes | None
    expect: tuple[str, ...] = ()


KEY_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "users": ("id",),
    "matches": ("match_id",),
    "events": ("event_id",),
    "event_attendance": ("event_id", "user_id"),
    "skill_sessions": ("session_id",),
    "checkins": ("checkin_id",),
    "feedback": ("feedback_id",),
    "milestones": ("milestone_id", "user_id"),
}
ENTITIES: Final = tuple(KEY_FIELDS)

# Every column and its type; `!` marks a required column.
FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "users": {
        "id": "uuid!", "email": "email!", "first_name": "name!", "last_name": "name!",
        "role": "enum!", "joined_at": "time!", "language_preference": "text",
        "interests": "texts", "location": "text",
    },
    "matches": {
        "match_id": "uuid!", "participant_id": "uuid!", "buddy_id": "uuid!",
        "matched_at": "time!", "status": "enum!", "ended_at": "time", "end_reason": "enum",
        "duration_days": "positive", "sessions_completed": "count", "events_attended": "count",
    },
    "events": {
        "event_id": "uuid!", "match_id": "uuid!", "event_type": "text!", "event_date": "time!",
        "description": "text", "location": "text", "attendees": "texts",
    },
    "event_attendance": {
        "event_id": "uuid!", "user_id": "uuid!", "match_id": "uuid", "event_title": "text!",
        "event_type": "enum!", "event_format": "enum!", "attended_at": "time!",
        "location": "text", "duration_minutes": "positive", "attendee_count": "positive",
        "organizer": "text", "categories": "texts", "sdg_goals": "goals",
    },
    "skill_sessions": {
        "session_id": "uuid!", "skill_id": "positive!", "skill_name": "text!",
        "skill_category": "text", "teacher_id": "uuid!", "learner_id": "uuid!",
        "match_id": "uuid", "completed_at": "time!", "scheduled_at": "time",
        "duration_minutes": "positive", "format": "enum", "proficiency_level": "enum",
        "teacher_rating": "rating", "learner_rating": "rating", "teacher_comment": "text",
        "learner_comment": "text", "learner_progress": "enum", "sdg_goals": "goals",
        "valuation_points": "positive",
    },
    "checkins": {
        "checkin_id": "uuid!", "match_id": "uuid!", "checkin_date": "time!", "mood": "enum",
        "notes": "text", "question_responses": "object",
    },
    "feedback": {
        "feedback_id": "uuid!", "match_id": "uuid!", "from_role": "enum!", "rating": "rating!",
        "feedback_text": "text", "submitted_at": "time!", "communication": "rating",
        "helpfulness": "rating", "engagement": "rating",
    },
    "milestones": {
        "milestone_id": "positive!", "user_id": "uuid!", "milestone_title": "text!",
        "milestone_category": "enum!", "reached_at": "time!", "points": "count!",
        "badge_icon": "text", "target_role": "enum", "progress": "object", "metadata": "object",
    },
}  # fmt: skip

USER_REFERENCES: Final = ("participant_id", "buddy_id", "user_id", "teacher_id", "learner_id")

encode: Final = msgspec.json.Encoder().encode


def uuid4(rng: Random) -> str:
    """Return a version 4 UUID, lower case with hyphens."""
    digits = f"{rng.getrandbits(128):032x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def key_of(entity: str, row: Row) -> str:
    """Return the canonical key of a row whose key fields are in canonical form."""
    return ":".join([str(row[field]) for field in KEY_FIELDS[entity]])
