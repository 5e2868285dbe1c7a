"""Judges the records of one task in one round, one at a time."""

from __future__ import annotations

from collections.abc import Mapping

from worker.core.addresses import Addresses, owner_of
from worker.core.decode import Decoded, Deletion, Invalid, RecordDecoder
from worker.core.keys import id_bytes
from worker.core.outbox import Outbox, coordinate
from worker.core.parked import Parked, State
from worker.core.recent import RecentRows
from worker.core.references import missing, rejects, unexpected, verdict
from worker.errors import BuddyError
from worker.stream import Message


class Judge:
    """Gives verdicts on the basis of the rows in `recent`, and writes them to `out`.

    `reservations` are those of this worker's tasks, by task, of `tasks` tasks in all.
    """

    def __init__(
        self,
        decoders: Mapping[str, RecordDecoder],
        reservations: Mapping[int, Addresses],
        tasks: int,
        recent: RecentRows,
        out: Outbox,
    ) -> None:
        self._decoders = decoders
        self._reservations = reservations
        self._tasks = tasks
        self._recent = recent
        self._out = out

    def judge(self, parked: Parked) -> list[bytes]:
        """Accept, delete or reject a record. Returns the ids it waits for: if any, it is undecided.

        A record whose judging fails is rejected, so that it blocks nothing else. Raises BuddyError
        if the index fails.
        """
        try:
            return self._judge(parked)
        except BuddyError:
            raise
        except Exception as error:  # noqa: BLE001 -- isolated: never a crash loop for one record
            self.fail(parked.entity, parked.message, error)
            return []

    def fail(self, entity: str, message: Message, error: Exception) -> None:
        """Reject a record whose judging failed."""
        self._out.tally.failures.append((coordinate(message), type(error).__name__))
        self._out.reject(entity, message, Invalid(None, (unexpected(),), malformed=True))

    def grant(self, row: Decoded) -> bool:
        """Grant the address of a user without warnings and unknown fields; False if not at once."""
        if row.address is None or row.warnings or row.unknown_fields:
            return False
        return bool(self._grant_at_once(row.address, id_bytes(row.key.decode())))

    def _judge(self, parked: Parked) -> list[bytes]:
        entity, message, decoded = parked.entity, parked.message, parked.decoded
        if isinstance(decoded, Deletion):
            output = self._out.delete(entity, message, decoded)
            self._recent.delete(entity, decoded.key, output)
            return []
        users, matches = missing(decoded, self._recent)
        if (users or matches) and not _is_definite(parked, matches):
            return users + matches
        taken = False
        if decoded.address is not None:
            granted = self._resolve_address(parked, decoded.address, id_bytes(decoded.key.decode()))
            if granted is None:
                return [request_id(parked.ordinal)]
            taken = not granted
        decoder = self._decoders[entity]
        violations = verdict(decoder, decoded, self._recent, users, matches, taken=taken)
        if rejects(violations):
            self._out.reject(entity, message, Invalid(decoded.key, violations))
        else:
            output = self._out.accept(entity, message, decoded, violations)
            self._recent.accept(entity, decoded, output)
        return []

    def _resolve_address(self, parked: Parked, address: bytes, user: bytes) -> bool | None:
        """Whether the address is granted; None until the owner replies. Requests it if needed."""
        match parked.state:
            case State.GRANTED:
                return True
            case State.REFUSED:
                return False
            case State.REQUESTED:
                return None
        # An earlier request may be in the log still: a grant for a judged record would keep the
        # address from others. Behind it, the next request is answered before it is released.
        decided = None if parked.attempt else self._grant_at_once(address, user)
        if decided is None:
            parked.move(State.REQUESTED)
            self._out.request(address, user, parked)
            if parked.attempt:
                self._out.persist(parked)  # the next owner must know which reply counts
        return decided

    def _grant_at_once(self, address: bytes, user: bytes) -> bool | None:
        """Have a task of this worker grant the address in this round; None if none can tell."""
        owner = self._reservations.get(owner_of(address, self._tasks))
        return None if owner is None else owner.grant_at_once(address, user, self._recent)


def request_id(ordinal: int) -> bytes:
    """The pseudo-id that a user waits for after a request; no id has this length."""
    return b"claim" + ordinal.to_bytes(8, "big")


def _is_definite(parked: Parked, matches: list[bytes]) -> bool:
    """Whether the missing references, `matches` included, can no longer be on their way."""
    frontier = parked.frontier
    return frontier is not None and frontier.passed and (frontier.covers_matches or not matches)
