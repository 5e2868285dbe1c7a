"""A task: partition q of all inputs. This is its state between rounds, and how the log keeps it.

`task_round` turns a batch into messages. docs/definitive-verdicts.md, "The states of a record".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from worker.core.addresses import Addresses, Reservation
from worker.core.at_once import sorters
from worker.core.books import Books
from worker.core.checkpoint import Checkpoint, Counts
from worker.core.decode import DecodeResult, decoders
from worker.core.incidents import (
    INPUT_EXPIRED,
    INPUT_RECREATED,
    INPUT_TRUNCATED,
    INTERNAL_TRUNCATED,
    PARKED_LOST,
    RECREATED,
    UNREADABLE_INTERNAL,
)
from worker.core.moments import Moment
from worker.core.outbox import Outbox
from worker.core.overdue import OverdueReservations
from worker.core.parked import Envelope, Parked
from worker.core.parking import Parking
from worker.core.reading import Missed, Reading
from worker.core.restoring import Outdated, Restorer, SavedState, will_be_read
from worker.core.saving import checkpoint_of, parked_now, says_more
from worker.core.task_settings import TaskSettings
from worker.core.topics import PARKED, REPLIES, REQUESTS, RESERVATIONS, TASK_INPUTS
from worker.core.unneeded import UnneededCopies
from worker.stream import Message, OffsetRange, ProducerRecord

GRANT_PATIENCE_MS: Final = 2_000
"""How long other records wait in their inboxes for a user whose address is not granted yet."""
_ASKED: Final = frozenset({REQUESTS, REPLIES})
_LOOK_FOR_UNANSWERED_MS: Final = 60_000
_NONE: Final[Mapping[str, str]] = {}
_NO_OFFSETS: Final[Mapping[str, int]] = {}
_NEVER: Final = -(2**62)
_OFFSET_BYTES: Final = 40
"""Upper bound of the bytes that one record in memory takes in the checkpoint."""


class Task:
    """The state of one task: its parked records, its reservations and its position."""

    def __init__(self, number: int, settings: TaskSettings, books: Books | None = None) -> None:
        self.number = number
        self.settings = settings
        self.owner = ""
        """The id of the owner that writes for the task: see `ownership`."""
        self.books = books or Books()
        self.parking = Parking()
        self.addresses = Addresses()
        self.reading = Reading()
        self.decoders = decoders(settings.record_limit)
        self.sorters = sorters(settings.record_limit)
        self.inputs = {settings.names.input(name): name for name in TASK_INPUTS}
        """The name of each input, by topic."""
        self.outdated: deque[Outdated] = deque()
        """Restored records to reject as soon as a decision has room for them."""
        self.ready: deque[Parked] = deque()
        """Parked records that may proceed as soon as a decision has room for them."""
        self.unanswered: deque[Parked] = deque()
        """Users whose requests to repeat as soon as a decision has room for them."""
        self.unreleased: deque[Reservation] = deque()
        """Reservations whose replies to repeat, likewise."""
        self._overdue = OverdueReservations()
        self._looked_for_unanswered = 0
        self.commit_refusals: Mapping[tuple[str, int], int] = {}
        """By entity and offset: how often the broker has refused to take a record's verdict."""
        self.awaits_first_round = False
        """Whether the task is restored and has had no round, which evaluates its records."""
        self.doubtful = False
        """Whether requests or replies may be lost: with a recreated topic, or by damage."""
        self.writes_again = False
        """Whether the next round must write the task's state again."""
        self._most_in_memory = min(
            settings.most_in_memory, settings.rejection_limit // _OFFSET_BYTES
        )
        self._lost: Mapping[str, int] = {}
        """By entity: how many parked records had lost their copy when the task was restored."""
        self._surplus = 0
        self._missing_reservations = 0
        self._saved_state = SavedState()
        """What the log holds, until `compare_topics` has restored the parked records."""
        self._restored_at = Moment(0, 0)
        self._unneeded = UnneededCopies()
        self._copies: deque[Parked] = deque()
        """Parked records whose copies must be written again."""
        self._fenced: list[str] = []
        """Earlier owners that are fenced and still need a tombstone."""
        self._saved: Checkpoint | None = None
        """The last checkpoint that this owner has written."""

    # --- from the log -------------------------------------------------------------------------

    def restore(self, saved: SavedState, now: Moment) -> None:
        """Restore the position that the log holds, the books and the reservations.

        Call once; then `compare_topics`, which restores the parked records.
        """
        if saved.checkpoint is not None:
            self.reading.restore(saved.checkpoint, now)
            self.books.restore(saved.checkpoint)
        self.addresses.restore(saved.reservations)
        self.doubtful = saved.doubtful
        self.awaits_first_round = True
        self._saved_state, self._restored_at = saved, now

    def _restore_parked(self, saved: SavedState, starts: Mapping[str, int]) -> None:
        """Restore the parked records that will not be read from inputs with these `starts`."""
        copies: list[Envelope] = []
        for copy in sorted(saved.parked, key=lambda copy: copy.ordinal):
            if will_be_read(copy, self.reading, starts):
                self._unneeded.add(copy.entity, copy.ordinal)
            else:
                copies.append(copy)
        restorer = Restorer(self.decoders, self.settings.skew / 1000, self.commit_refusals)
        for record in restorer.records(copies, self._restored_at):
            if isinstance(record, Outdated):
                self.outdated.append(record)
            else:
                self.parking.add(record)

    def _restored_unread(self, saved: SavedState) -> list[Envelope]:
        """The copies that are restored though their records were to be read: these are gone."""
        return [
            copy for copy in saved.unknown if copy.ordinal not in self._unneeded.of(copy.entity)
        ]

    def _look_for_losses(self, saved: SavedState, unread: Mapping[str, int]) -> None:
        """Find how many copies are lost, and how many belong to records that are judged.

        `unread` are the restored copies that no checkpoint has counted.
        """
        for entity, count in unread.items():  # they count as read from now on
            counts = self.books.counts.get(entity, Counts())
            self.books.counts[entity] = msgspec.structs.replace(counts, read=counts.read + count)
        checkpoint = saved.checkpoint
        if checkpoint is None:
            return
        lost = saved.persisted()
        restored = Counter(copy.entity for copy in saved.parked)
        restored.subtract(self._unneeded.counts())
        restored.subtract(unread)
        lost.subtract(restored)
        self._lost = {entity: count for entity, count in lost.items() if count > 0}
        if checkpoint.has_books and not saved.doubtful:
            # Each copy and its removal are in one transaction with a checkpoint that counts it.
            self._surplus = -sum(count for count in lost.values() if count < 0)
            if checkpoint.reserved is not None:
                self._missing_reservations = checkpoint.reserved - len(self.addresses)
        self.doubtful |= self._surplus > 0

    def compare_topics(
        self,
        topics: Mapping[str, str],
        spans: Mapping[str, OffsetRange],
        others: Mapping[str, str] = _NONE,
        committed: Mapping[str, int] = _NO_OFFSETS,
        *,
        outdated: bool = False,
    ) -> Missed:
        """Compare the checkpoint's topics with those that are there, and restore parked records.

        Call once, after `restore` if the log holds anything of this task. `topics` and `spans` are
        those of the inputs (`TASK_INPUTS`). `others` has the identities of the state topics and,
        for task 0, of the accepted topics. `committed` has the group's offsets by input.
        `outdated`: the checkpoint is known not to be the last one. Returns what
        `Reading.compare_topics` finds missing, the lost parked records, and what the state topics
        have lost. Enters all of it in the books.
        """
        saved, self._saved_state = self._saved_state, SavedState()
        behind = max(self.reading.behind(committed), saved.behind())
        missed = self.reading.compare_topics(topics, spans, others)
        for entity, times in saved.earlier().items():
            self.reading.earlier[entity] = max(times, self.reading.earlier.get(entity, 0))
        self._restore_parked(saved, {name: span.start for name, span in spans.items()})
        unread = self._restored_unread(saved)
        self._look_for_losses(saved, Counter(copy.entity for copy in unread))
        # Of these records nothing is lost: they have their copies.
        kept = Counter(c.entity for c in unread if c.ordinal >= self.reading.ordinal(c.entity, 0))
        expired = {entity: count - kept[entity] for entity, count in missed.expired.items()}
        missed = missed._replace(expired={e: count for e, count in expired.items() if count})
        if outdated or behind:  # its counts are outdated, too
            self.doubtful = True
            # At most so many: records may have been judged since the checkpoint.
            gone = self._lost if PARKED in missed.others else {}
            missed = missed._replace(behind=behind, parked=gone)
        else:
            anew = RESERVATIONS in missed.others
            missed = missed._replace(
                parked=self._lost,
                surplus=self._surplus,
                reservations=0 if anew else self._missing_reservations,
            )
        self.doubtful = (
            self.doubtful
            or RESERVATIONS in missed.others
            or missed.reservations != 0
            or not _ASKED.isdisjoint((*missed.recreated, *missed.truncated))
        )
        if missed.parked:
            self.books.incident(PARKED_LOST, sum(missed.parked.values()))
        asked = sum(name in _ASKED for name in missed.truncated)
        lost_ends = (missed.surplus > 0, missed.behind > 0 or outdated, missed.reservations != 0)
        if truncated := asked + sum(lost_ends):
            self.books.incident(INTERNAL_TRUNCATED, truncated)
        for count in missed.expired.values():
            self.books.incident(INPUT_EXPIRED, count)
        for name, count in missed.truncated.items():
            if name not in _ASKED:
                self.books.incident(INPUT_TRUNCATED, count)
        for name in missed.others:
            self.books.incident(RECREATED[name.partition(".")[0]])
        if missed.recreated:
            self.books.incident(INPUT_RECREATED, len(missed.recreated))
        return missed

    # --- what a round is needed for -----------------------------------------------------------

    @property
    def can_proceed(self) -> bool:
        """Whether parked records can proceed without new input: a round settles them.

        Either a frontier has been passed, or a decision had no room for all of them.
        """
        passed = any(frontier.passed for frontier in self.parking.frontiers())
        return bool(self.ready or self.outdated or passed)

    def has_to_persist(self, now: Moment) -> bool:
        """Whether records in memory are due to be persisted: a round writes their copies."""
        latest = now.steady - self.settings.persist_after
        return bool(self.parking.to_persist(latest, self._may_stay_in_memory()))

    def has_to_ask_again(self, now: Moment) -> bool:
        """Whether a round is to repeat requests, or replies. Looks for them once a minute."""
        if now.steady - self._looked_for_unanswered >= _LOOK_FOR_UNANSWERED_MS:
            self._looked_for_unanswered = now.steady
            self.unanswered = deque(self.parking.unanswered(now.steady))
            self.unreleased = deque(self._overdue.look(self.addresses, now.steady))
        return bool(self.unanswered or self.unreleased)

    def end_grace(self, now: Moment) -> bool:
        """End the grace of records: whether any need a frontier (`Parking.await_frontiers`)."""
        return self.parking.end_grace(now.steady - self.settings.grace)

    def decode_users(self, messages: Sequence[Message], now: int) -> dict[int, DecodeResult]:
        """The outcomes of the users among these messages, by offset, for `TaskRound`.

        Empty if decoding fails: it fails again in the round, which isolates the record.
        """
        users = [m for m in messages if self.inputs[m.topic] == "users"]
        values, keys = [m.value for m in users], [m.key for m in users]
        arrivals = [m.timestamp if m.appended else now for m in users]
        decode = self.sorters["users"].decoder.decode_all
        try:
            outcomes = decode(values, keys, arrivals, self.settings.skew / 1000)
        except Exception:  # noqa: BLE001 -- it fails again in the round
            return {}
        return {m.offset: outcome for m, outcome in zip(users, outcomes, strict=True)}

    # --- to the log ---------------------------------------------------------------------------

    def flush_parked(self, now: Moment) -> list[ProducerRecord]:
        """Copies of records in memory: write them before the task may be without an owner for long.

        One call returns one decision's worth, with the checkpoint: call again until the list is
        empty. Call only when everything that this task has decided is committed. Decide nothing
        afterwards.
        """
        if self.awaits_first_round:  # the log is complete, and requests are not repeated yet
            return []
        messages: list[ProducerRecord] = []
        out = Outbox(self.number, self.settings, now.wall, messages)
        self.persist_parked(out, now.steady)
        self.save(out, now)
        return messages

    def persist_parked(self, out: Outbox, latest: int) -> None:
        """Persist records first read at `latest` or before (steady clock), oldest first."""
        most = self._may_stay_in_memory()
        # Too many records in memory would make the checkpoint larger than its topic accepts.
        for parked in self.parking.to_persist(_NEVER, most):
            self._persist(out, parked)
        for parked in self.parking.to_persist(latest, most):
            if out.is_full:
                return
            self._persist(out, parked)

    def settle_unneeded(self, out: Outbox, entity: str, batch: Sequence[Message]) -> None:
        """Remove the copies of these records, which were read although a copy was in the log.

        A record that is parked now gets its copy again. But it loses it if an earlier record of
        the entity is in memory: the next owner reads that one after the persisted ones. Call when
        all of them are judged or parked.
        """
        unneeded = self._unneeded.of(entity)
        if not unneeded:
            return
        for message in batch:
            ordinal = self.reading.ordinal(entity, message.offset)
            if ordinal in unneeded:
                self._unneeded.remove(entity, ordinal)
                parked = self.parking.find(entity, ordinal)
                if parked is not None and self.parking.is_first_in_memory(parked):
                    self._persist(out, parked)
                elif parked is None or not parked.persisted:
                    out.drop(entity, ordinal)

    def has_unneeded(self, entity: str, begin: int, end: int) -> bool:
        """Whether a record between these offsets has a copy and is to be read."""
        first, last = (self.reading.ordinal(entity, offset) for offset in (begin, end))
        return any(first <= ordinal < last for ordinal in self._unneeded.of(entity))

    def strike_out(self, owners: Iterable[str]) -> None:
        """These earlier owners are fenced: the next round writes their tombstones."""
        self._fenced += owners

    def write_again(self, identities: Mapping[str, str]) -> None:
        """A topic of this running task's state was recreated or emptied: write all state again.

        `identities` has the current identities of all state topics, by their names in the
        checkpoint.
        """
        self._copies = deque(parked for parked in self.parking if parked.persisted)
        self.reading.topics |= identities
        self.writes_again = True

    def write_state(self, out: Outbox) -> None:
        """Write tombstones of earlier owners, and what a recreated topic lacks if there is room."""
        if self.writes_again:
            while self._copies and not out.is_full:
                parked = self._copies.popleft()
                if self.parking.is_parked(parked):
                    out.persist(parked)
            if not self._copies:
                for reservation in self.addresses:
                    out.reserve(reservation)
                if self.owner:
                    out.write_owner(self.owner)
                self.writes_again = False
        for owner in self._fenced:
            out.strike_out(owner)
        self._fenced = []

    def save(self, out: Outbox, now: Moment, *, always: bool = False) -> None:
        """Write the checkpoint if it says more than the last, or with anything else in `out`.

        `always` writes it in any case, to name the worker. Enters the tally of `out` in the books.
        """
        reading = self.reading
        self._hold_back_watermark(now)
        reading.advance()
        for offsets in out.tally.unreadable.values():
            self.books.incident(UNREADABLE_INTERNAL, len(offsets))
        self.books.enter(out.tally, parked_now(reading, self.parking, self.outdated))
        unneeded = self._unneeded.unread(reading)
        checkpoint = checkpoint_of(reading, self.parking, self.books, len(self.addresses), unneeded)
        if always or not out.is_empty or says_more(checkpoint, self._saved):
            self._saved = checkpoint
            out.save(checkpoint)

    def _hold_back_watermark(self, now: Moment) -> None:
        """Records of other workers wait for a user whose address may still be granted."""
        watermarks = self.reading.watermarks
        young = self.parking.young("users", now.steady - GRANT_PATIENCE_MS)
        if young is not None and "users" in watermarks:
            watermarks["users"] = min(watermarks["users"], young.arrival - 1)

    def _persist(self, out: Outbox, parked: Parked) -> None:
        out.persist(parked)
        self.parking.persist(parked)

    def _may_stay_in_memory(self) -> int:
        """How many records may stay in memory, besides those still to be read again."""
        return self._most_in_memory - self.reading.left
