"""Records in canonical form, so that an accepted row must equal what was sent."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

Fields = dict[str, Any]

_BEGIN: Final = datetime(2024, 1, 1, tzinfo=UTC)
_PRESENT: Final = datetime.now(UTC)
"""Not in the future, whatever somebody's clock says."""
_FORMATS: Final = ("in-person", "online", "hybrid")


class Records:
    """Makes records at random. Each carries the next number in a field of free content."""

    def __init__(self, random_: random.Random) -> None:
        self.made = 0
        self._random = random_

    def id(self) -> str:
        """A new UUID v4."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def user(self, id_: str, email: str) -> Fields:
        """A user."""
        return {
            "id": id_,
            "email": email,
            "first_name": "Ada",
            "last_name": "Lovelace",
            "role": self._random.choice(("participant", "buddy")),
            "joined_at": self._moment(),
            "interests": ["hiking", "cooking"],
            "location": self._mark(),
        }

    def match(self, id_: str, participant: str, buddy: str) -> Fields:
        """A match; it has no text, so its number stands in a count."""
        return {
            "match_id": id_,
            "participant_id": participant,
            "buddy_id": buddy,
            "matched_at": self._moment(),
            "status": "active",
            "sessions_completed": self._next(),
        }

    def event(self, match: str, attendees: list[str]) -> Fields:
        """An informal event."""
        return {
            "event_id": self.id(),
            "match_id": match,
            "event_type": "hangout",
            "event_date": self._moment(),
            "description": self._mark(),
            "attendees": attendees,
        }

    def attendance(self, user: str, match: str | None) -> Fields:
        """Somebody at a formal event."""
        return {
            "event_id": self.id(),
            "user_id": user,
            **({} if match is None else {"match_id": match}),
            "event_title": "Workshop",
            "event_type": "educational",
            "event_format": self._random.choice(_FORMATS),
            "attended_at": self._moment(),
            "location": self._mark(),
            "sdg_goals": [4, 8],
        }

    def session(self, teacher: str, learner: str, match: str | None) -> Fields:
        """A skill session."""
        return {
            "session_id": self.id(),
            "skill_id": self._random.randint(1, 99),
            "skill_name": "Knitting",
            "teacher_id": teacher,
            "learner_id": learner,
            **({} if match is None else {"match_id": match}),
            "completed_at": self._moment(),
            "teacher_rating": 0.75,
            "teacher_comment": self._mark(),
        }

    def checkin(self, match: str) -> Fields:
        """A check-in."""
        return {
            "checkin_id": self.id(),
            "match_id": match,
            "checkin_date": self._moment(),
            "mood": "good",
            "notes": self._mark(),
            "question_responses": {"q1": "yes", "q2": None},
        }

    def feedback(self, match: str) -> Fields:
        """Feedback."""
        return {
            "feedback_id": self.id(),
            "match_id": match,
            "from_role": "buddy",
            "rating": self._random.choice((0.5, 0.85, 1.0)),
            "feedback_text": self._mark(),
            "submitted_at": self._moment(),
        }

    def milestone(self, user: str) -> Fields:
        """A milestone."""
        return {
            "milestone_id": self._random.randint(1, 10_000),
            "user_id": user,
            "milestone_title": "First match",
            "milestone_category": "buddy-connection",
            "reached_at": self._moment(),
            "points": 100,
            "badge_icon": self._mark(),
        }

    def update(self, entity: str, record: Fields) -> Fields:
        """The next version of a record: another number, nothing else."""
        if entity == "matches":
            return record | {"sessions_completed": self._next()}
        return record | {MARKED[entity]: self._mark()}

    def _next(self) -> int:
        self.made += 1
        return self.made

    def _mark(self) -> str:
        return f"#{self._next()}"

    def _moment(self) -> str:
        at = _BEGIN + timedelta(seconds=self._random.randrange(300 * 24 * 3600))
        if self._random.random() < 0.1:
            at = _PRESENT
        return at.strftime("%Y-%m-%dT%H:%M:%SZ")


MARKED: Final = {
    "users": "location",
    "events": "description",
    "event_attendance": "location",
    "skill_sessions": "teacher_comment",
    "checkins": "notes",
    "feedback": "feedback_text",
    "milestones": "badge_icon",
}

OWN_ERRORS: Final[dict[str, tuple[str, Callable[[Fields], Fields]]]] = {
    "missing_required_field": ("events", lambda r: r | {"event_type": "  "}),
    "wrong_type": ("milestones", lambda r: r | {"points": "100"}),
    "invalid_uuid": ("checkins", lambda r: r | {"match_id": "match-1"}),
    "invalid_timestamp": ("checkins", lambda r: r | {"checkin_date": "2024-02-30T00:00:00Z"}),
    "future_timestamp": ("users", lambda r: r | {"joined_at": "2999-01-01T00:00:00Z"}),
    "invalid_enum": ("matches", lambda r: r | {"status": "Active"}),
    "rating_out_of_range": ("feedback", lambda r: r | {"rating": 1.01}),
    "number_out_of_range": ("event_attendance", lambda r: r | {"sdg_goals": [18]}),
    "text_too_long": ("users", lambda r: r | {"first_name": "x" * 101}),
    "invalid_email": ("users", lambda r: r | {"email": "nobody"}),
}
"""Codes of the contract that a record earns by its own fields: whose, and how."""
