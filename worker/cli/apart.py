"""Keeps log and exports out of the directories that this program empties."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_STATE: Final = ("desk", "index", "sink")
"""What the services keep below `data`, and empty when they rebuild it."""


def check_apart(data: str, broker: str, exports: str) -> None:
    """Raises ValueError if log or exports lie in a directory below `data` that is emptied.

    Symbolic links count for what they point to.
    """
    scheme, _, log = broker.partition(":")
    places = {"broker": log if scheme == "embedded" else None}
    places["exports"] = None if exports.startswith("s3:") else exports
    for name, place in places.items():
        for state in _STATE:
            emptied = os.path.realpath(Path(data) / state)
            if place is not None and f"{os.path.realpath(place)}/".startswith(f"{emptied}/"):
                raise ValueError(f"`{name}` must not lie in {state}/ of `data`: that is emptied")
