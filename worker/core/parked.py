"""One parked record: what it waits for, and its copy in the log."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import msgspec

from worker.core.decode import Decoded, Deletion
from worker.core.frontier import Frontier
from worker.core.moments import Moment
from worker.stream import Headers, Message

PARKED_BYTES: Final = 2_500
_HEADER_BYTES: Final = 200
_ATTENDEE_BYTES: Final = 96
"""Measured memory overhead of a parked record, and of each of its headers and attendees."""
_REPLY_PATIENCE_MS: Final = 300_000
_MOST_DOUBLINGS: Final = 8
"""While an owner is away, replies take long: requests must not pile up meanwhile."""


def headers_weight(headers: Headers) -> int:
    """About how many bytes of memory the headers take."""
    return sum(_HEADER_BYTES + len(name) + len(value) for name, value in headers)


class State(Enum):
    """What a parked record waits for, besides its turn behind earlier records of its key.

    A row with references is in the first three states, a row with an address in the next four: no
    row has both. A deletion has neither.
    """

    GRACE = auto()
    """For references, which may still be on their way: its grace period has not ended."""
    NEEDS_FRONTIER = auto()
    """For the next frontier: its grace period has ended."""
    HAS_FRONTIER = auto()
    """For references, until its frontier is passed."""
    UNREQUESTED = auto()
    """For its turn: then it requests its address."""
    REQUESTED = auto()
    """For the reply of the address's owner."""
    GRANTED = auto()
    """For nothing: it has its address."""
    REFUSED = auto()
    """For nothing: another user has its address."""
    TURN = auto()
    """For its turn alone: a deletion, for example."""


TRANSITIONS: Final = {
    State.GRACE: {State.NEEDS_FRONTIER},
    State.NEEDS_FRONTIER: {State.HAS_FRONTIER},
    # The frontier is void: an input has lost the records up to whose ends it waits.
    State.HAS_FRONTIER: {State.NEEDS_FRONTIER},
    # Granted without a request: an earlier version's grant covers the record.
    State.UNREQUESTED: {State.REQUESTED, State.GRANTED},
    # Nobody replied: the request, or its reply, may be lost.
    State.REQUESTED: {State.GRANTED, State.REFUSED, State.UNREQUESTED},
    State.GRANTED: set[State](),
    State.REFUSED: set[State](),
    State.TURN: set[State](),
}
"""By state, the possible next states. A record leaves any state when it is settled."""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A parked record as `internal.parked` stores it: enough to judge it as if newly read."""

    entity: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    arrival: int
    first_read: int
    attempt: int = 0
    ordinal: int = -1

    def message(self) -> Message:
        """The message as it was read."""
        return Message(
            self.topic,
            self.partition,
            self.offset,
            self.timestamp,
            self.key,
            self.value,
            self.headers,
        )


class Parked(msgspec.Struct, eq=False):
    """A record or deletion on the way to its verdict; parked once `Parking.add` has it.

    `arrival` is in milliseconds since 1970.
    """

    entity: str
    message: Message
    decoded: Decoded | Deletion
    arrival: int
    first_read: Moment
    ordinal: int
    """Its number in its input: the offset, counted on from all earlier topics
    (`Reading.ordinal`)."""
    state: State = State.TURN
    frontier: Frontier | None = None
    """What it waits for in the state `HAS_FRONTIER`."""
    attempt: int = 0
    """How often the request for its address has been repeated."""
    tried: int = 0
    """When it was judged last and had to wait, on the steady clock."""
    persisted: bool = False
    """Whether the log has a copy of it."""
    wanted: frozenset[bytes] = frozenset()
    """The ids that the record waits for; empty while it only queues behind its key."""
    size: int = 0
    """About how many bytes of memory it takes while it is parked."""

    def __post_init__(self) -> None:
        """Begin with the first state of such a record."""
        row = self.decoded
        if isinstance(row, Decoded):
            if row.address is not None:
                self.state = State.UNREQUESTED
            elif row.users or row.matches:
                self.state = State.GRACE

    def move(self, state: State) -> None:
        """Go to the next state. AssertionError if `TRANSITIONS` has no such step."""
        assert state in TRANSITIONS[self.state], f"{self.state} to {state}"
        self.state = state

    def weigh(self) -> None:
        """Set `size`. Keep one object for row and message if they are equal, as most are.

        Runs when the record is parked: most records never are.
        """
        message, decoded = self.message, self.decoded
        size = PARKED_BYTES + len(message.value or b"") + len(message.key or b"")
        size += headers_weight(message.headers)
        if isinstance(decoded, Decoded):
            if decoded.row == message.value:
                self.decoded = msgspec.structs.replace(decoded, row=message.value)
            else:
                size += len(decoded.row)
            size += _ATTENDEE_BYTES * len(decoded.attendees)
        self.size = size

    @property
    def reply_patience(self) -> int:
        """How many milliseconds a request may stay unanswered: 5 min, doubled by each attempt."""
        return _REPLY_PATIENCE_MS << min(self.attempt, _MOST_DOUBLINGS)

    @property
    def refers_to_matches(self) -> bool:
        """Whether its orphan verdict depends on matches as well."""
        return isinstance(self.decoded, Decoded) and bool(self.decoded.matches)

    def envelope(self) -> Envelope:
        """The copy to persist."""
        m = self.message
        return Envelope(
            self.entity,
            m.topic,
            m.partition,
            m.offset,
            m.timestamp,
            m.key,
            m.value,
            m.headers,
            self.arrival,
            self.first_read.wall,
            self.attempt,
            self.ordinal,
        )
