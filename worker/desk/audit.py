"""The audit of replays in `buddy.replays`: a message for each record that was sent again."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.core.rejection import REPLAYS_HEADER
from worker.stream import Headers, Message

ORIGIN_HEADER: Final = "buddy-origin"
"""The coordinate of the record that was first sent, on every replay of it."""


MOST_REPLAYS: Final = 3
"""A record is sent again this often, unless told otherwise."""


class ReplayAudit(msgspec.Struct, frozen=True, kw_only=True):
    """A rejected record that was sent again. The same transaction wrote this and the record."""

    replay: str
    """The id of the run, which is the key of the message."""
    at: str
    by: str
    """Who ran it."""
    entity: str
    key: str | None
    rejection: str
    """The coordinate of the rejection: `topic/partition/offset`."""
    origin: str
    """The coordinate of the record that was first sent."""
    replays: int
    """How often this record has been sent again, this time included."""
    forced: bool = False
    """Whether it was sent although its key had been accepted or deleted since."""


_COORDINATE: Final = re.compile(r"[^/]+/[0-9]{1,9}/[0-9]{1,18}")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ReplayAudit).decode


def encode_audit(audit: ReplayAudit) -> tuple[bytes, bytes]:
    """The key and the value of the message."""
    return audit.replay.encode(), _encode(audit)


def read_audit(message: Message) -> ReplayAudit | None:
    """The audit in a message; None if the message is none."""
    try:
        audit = _decode(message.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    is_sound = audit.entity in ENTITIES and is_coordinate(audit.rejection)
    return audit if is_sound else None


def is_coordinate(text: str) -> bool:
    """Whether a text is `topic/partition/offset`."""
    return _COORDINATE.fullmatch(text) is not None


def with_replay_headers(headers: Headers, origin: str, replays: int) -> Headers:
    """The headers of a record that is sent again: its own, and two that replace earlier ones."""
    own = tuple(one for one in headers if one[0] not in (ORIGIN_HEADER, REPLAYS_HEADER))
    ours = ((ORIGIN_HEADER, origin.encode()), (REPLAYS_HEADER, b"%d" % replays))
    return own + ours
