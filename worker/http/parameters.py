"""Parameters of requests that several endpoints share."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Final

from starlette.requests import Request

from schemas import ENTITIES
from worker.http.problems import Problem

LONGEST_WAIT: Final = 60.0
_SECONDS: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s)?")


def entity_of(request: Request) -> str:
    """The entity in the path. Raises Problem 404."""
    entity: str = request.path_params["entity"]
    if entity in ENTITIES:
        return entity
    near = get_close_matches(entity[:40].lower(), ENTITIES, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ENTITIES)}"
    raise Problem(404, "unknown_entity", f"no such entity: {hint}")


def wait_of(request: Request) -> float:
    """The seconds of `?wait=10s`; 0 if the client does not wait. Raises Problem 400."""
    text = request.query_params.get("wait", "0")
    match = _SECONDS.fullmatch(text)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else None
    if seconds is None or seconds > LONGEST_WAIT:
        raise Problem(
            400,
            "malformed_wait",
            f"wait must be a time such as 10s or 500ms, at most {LONGEST_WAIT:.0f}s",
        )
    return seconds
