"""Keeps log and exports out of the directories that this program empties, and copies out of all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from worker.errors import UsageError

_STATE: Final = ("desk", "index", "sink")
"""What the services keep below `data`, and empty when they rebuild it."""


def check_apart(data: str, broker: str, exports: str) -> None:
    """Raises ValueError if log or exports lie in a directory below `data` that is emptied.

    Symbolic links count for what they point to.
    """
    for name, place in _places(broker, exports).items():
        for state in _STATE:
            if _lies_in(place, Path(data) / state):
                raise ValueError(f"`{name}` must not lie in {state}/ of `data`: that is emptied")


def check_out(out: Path, data: str, broker: str, exports: str) -> None:
    """Raises UsageError if a copy at `out` would lie among exports, log or state.

    There it could be taken for what this program keeps, or be removed with it. Symbolic links count
    for what they point to.
    """
    states = [("data", str(Path(data) / state)) for state in _STATE]
    for name, place in (*_places(broker, exports).items(), *states):
        if _lies_in(out, place):
            raise UsageError(
                f"{out} lies in {place}, a directory of `{name}`: name one elsewhere with --out"
            )


def _places(broker: str, exports: str) -> dict[str, str]:
    """The directories of exports and log, by setting; those that are in no directory are absent."""
    scheme, _, log = broker.partition(":")
    places = {} if exports.startswith("s3:") else {"exports": exports}
    return places | ({"broker": log} if scheme == "embedded" else {})


def _lies_in(place: str | Path, directory: str | Path) -> bool:
    """Whether they are one, or `place` is below."""
    return Path(os.path.realpath(place)).is_relative_to(os.path.realpath(directory))
