"""The eight entities as docs/spec.md has them: keys and references. On its own, on purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple


class Shape(NamedTuple):
    """What matters of an entity here: column names."""

    key: tuple[str, ...]
    users: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()


SHAPES: Final[Mapping[str, Shape]] = {
    "users": Shape(("id",)),
    "matches": Shape(("match_id",), ("participant_id", "buddy_id")),
    "events": Shape(("event_id",), (), ("match_id",)),
    "event_attendance": Shape(("event_id", "user_id"), ("user_id",), ("match_id",)),
    "skill_sessions": Shape(("session_id",), ("teacher_id", "learner_id"), ("match_id",)),
    "checkins": Shape(("checkin_id",), (), ("match_id",)),
    "feedback": Shape(("feedback_id",), (), ("match_id",)),
    "milestones": Shape(("milestone_id", "user_id"), ("user_id",)),
}


def key_of(entity: str, record: Mapping[str, Any]) -> str:
    """The canonical key; composite ones are written `a:b`."""
    return ":".join(str(record[column]) for column in SHAPES[entity].key)


class Topics:
    """The topic names of docs/contract.md under one prefix."""

    def __init__(self, prefix: str = "buddy") -> None:
        self.prefix = prefix
        self.inputs = {entity: f"{prefix}.in.{entity}" for entity in SHAPES}
        self.accepted = {entity: f"{prefix}.accepted.{entity}" for entity in SHAPES}
        self.rejected = {entity: f"{prefix}.rejected.{entity}" for entity in SHAPES}
        self.parked = f"{prefix}.internal.parked"
        self.progress = f"{prefix}.internal.progress"
        self.exports = f"{prefix}.exports"
        self.export_requests = f"{prefix}.export-requests"

    def every(self) -> list[str]:
        """All that the checker reads."""
        return [
            *self.inputs.values(),
            *self.accepted.values(),
            *self.rejected.values(),
            self.parked,
            self.progress,
            self.exports,
            self.export_requests,
        ]

    def outcomes(self) -> list[str]:
        """Where every input has its one outcome."""
        return [*self.accepted.values(), *self.rejected.values()]
