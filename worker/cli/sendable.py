"""Checks texts that are sent to a server as a login. No error repeats the text."""

from __future__ import annotations

import re
from typing import Final

_NOT_SENDABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, line ends among them, and bytes of the environment that are not UTF-8."""


def check_sendable(name: str, text: str | None) -> None:
    """Raises ValueError, which names the setting, if no protocol can carry the text."""
    if text is not None and _NOT_SENDABLE.search(text):
        raise ValueError(f"{name} must be one line of UTF-8, without control characters")
