"""What is known of rejections, as JSON documents: commands and the HTTP API give the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from worker.core.rejection import LAST_MS

if TYPE_CHECKING:
    from worker.desk.incidents import IncidentReport
    from worker.desk.queries import RejectionListed, Summary


def summary_answer(found: Summary, unknown: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The counts by kind of violation, and the names of unknown fields."""
    violations = [
        {
            **msgspec.structs.asdict(kind),
            **msgspec.structs.asdict(counted),
            "first": moment(counted.first),
            "last": moment(counted.last),
        }
        for kind, counted in found.kinds
    ]
    return {
        "rejections": found.records,
        "open": found.open,
        "violations": violations,
        "unknown_names": unknown,
    }


def listed_answer(one: RejectionListed) -> dict[str, Any]:
    """A rejection of a list."""
    return {**msgspec.structs.asdict(one), "at": moment(one.at)}


def incident_answer(one: IncidentReport) -> dict[str, Any]:
    """An incident, and what stands out in it."""
    return {
        **msgspec.structs.asdict(one),
        "since": moment(one.since),
        "opened": moment(one.opened),
        "closed": None if one.closed is None else moment(one.closed),
    }


def moment(milliseconds: int) -> datetime:
    """The moment of so many milliseconds since 1970."""
    # Earlier releases kept any time in the store.
    return datetime.fromtimestamp(min(milliseconds, LAST_MS) / 1000, UTC)
