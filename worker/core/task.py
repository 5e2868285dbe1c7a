"""A task: partition q of all inputs. In a round (`round`) it turns a batch into messages.

What happens to a record:

1. It is decoded (`decode`), and rejected if its own fields have errors.
2. It queues behind an earlier parked record of its key.
3. It is parked while a reference is unknown, or while its address is not granted.
4. It is accepted, or rejected because a user is definitely missing or its address is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from schemas import ENTITIES
from worker.core.addresses import Addresses, ReservationRequest, owner_of
from worker.core.at_once import sorters
from worker.core.books import Books
from worker.core.decode import (
    Decoded,
    Deletion,
    Invalid,
    Outcome,
    RecordDecoder,
    decoders,
    latest_moment,
)
from worker.core.frontier import Frontier
from worker.core.internal import read_claim, read_grant
from worker.core.keys import id_bytes
from worker.core.moments import Moment
from worker.core.outbox import Outbox, Tally, coordinate
from worker.core.parking import Parked, Parking
from worker.core.reading import Missed, Reading
from worker.core.recent import RecentRows
from worker.core.references import missing, rejects, unexpected, unknown_attendees, verdict
from worker.core.restoring import Outdated, Restorer, Saved
from worker.core.task_settings import TaskSettings
from worker.errors import BuddyError
from worker.stream import Message, ProducerRecord

CLAIMS: Final = "claims"
GRANTS: Final = "grants"
INPUTS: Final = (GRANTS, CLAIMS, *ENTITIES)
"""The inputs of a task, in the order in which a batch is judged. Records that other tasks wait for
come first. Users come before matches, and matches before the rest, so that more references are
known."""

_ASKED: Final = frozenset({CLAIMS, GRANTS})
PROGRESS: Final = "internal.progress"
PARKED: Final = "internal.parked"
GRANTED: Final = "internal.granted"
OWNERS: Final = "internal.owners"
"""The topics of a task's state, as its checkpoint names them. `internal.progress` is among them: an
owner that notices late that it was frozen may write its last checkpoint to a recreated topic."""

INPUT_EXPIRED: Final = "input_expired"
INPUT_RECREATED: Final = "input_recreated"
UNREADABLE_INTERNAL: Final = "unreadable_internal"
ACCEPTED_RECREATED: Final = "accepted_recreated"
INTERNAL_RECREATED: Final = "internal_recreated"
REJECTED_RECREATED: Final = "rejected_recreated"
PARKED_LOST: Final = "parked_lost"
PROGRESS_LOST: Final = "progress_lost"
INTERNAL_SKIPPED: Final = "internal_skipped"
FOREIGN_ROW: Final = "foreign_row"
CLOCK_STEPPED: Final = "clock_stepped"
"""Incidents as the books name them; the log events have the same names."""

_RECREATED: Final = {
    "accepted": ACCEPTED_RECREATED,
    "rejected": REJECTED_RECREATED,
    "internal": INTERNAL_RECREATED,
}

GRANT_PATIENCE_MS: Final = 2_000
"""How long other records wait in their inboxes for a user whose address is not granted yet."""
_CLAIM_AGAIN_MS: Final = 24 * 3600 * 1000
"""A take-over repeats older reservation requests. Requests and replies expire after seven days."""

_NONE: Final[Mapping[str, str]] = {}
_NEVER: Final = -(2**62)
_HELD_BYTES: Final = 40
"""Upper bound of the bytes that one held record takes in the checkpoint."""


class Task:
    """The state of one task: its parked records, its reservations and its position."""

    def __init__(self, number: int, rules: TaskSettings, books: Books | None = None) -> None:
        self.number = number
        self.owner = ""
        """The id of the owner that writes for the task: see `ownership`."""
        self.books = books or Books()
        self.parking = Parking()
        self.addresses = Addresses()
        self.reading = Reading()
        self._rules = rules
        self._decoders: Mapping[str, RecordDecoder] = decoders(rules.record_limit)
        self._sorters = sorters(rules.record_limit)
        self.inputs = {rules.names.input(name): name for name in INPUTS}
        """The name of each input, by topic."""
        self._most_held = min(rules.most_held, rules.rejection_limit // _HELD_BYTES)
        self._decoded: dict[int, Outcome] = {}
        """By offset: outcomes of users in the next batch that are decoded ahead, for their
        addresses."""
        self._outdated: deque[Outdated] = deque()
        self._to_try: deque[Parked] = deque()
        """Parked records that may proceed as soon as a decision has room for them."""
        self.refused: Mapping[tuple[str, int], int] = {}
        """By entity and offset: how often the broker has refused the outcome of a record."""
        self.restored = False
        """Whether restored records still await evaluation: the next round evaluates them."""
        self._lost: Mapping[str, int] = {}
        """By entity: how many parked records had lost their copy when the task was restored."""
        self._takes_over = False
        """Whether this is the first round here: its checkpoint must name this worker."""
        self._unasked = False
        """Whether requests or replies may be lost: with a recreated topic, or by damage."""
        self._copies: deque[Parked] = deque()
        """Parked records whose copies must be written again."""
        self.writes_again = False
        """Whether the next round must write the task's state again."""
        self._overdue: list[Parked] = []
        self._at_frontier: list[Parked] = []
        self._noted: list[Frontier] = []
        self._struck: list[str] = []
        """Earlier owners that are fenced and still need a tombstone."""
        # Valid during a round only.
        self._peers: Mapping[int, Task] = {}
        self._recent: RecentRows
        self._out: Outbox
        self._now = Moment(0, 0)

    # --- restore ------------------------------------------------------------------------------

    def restore(self, saved: Saved, now: Moment) -> None:
        """Restore the state that the log holds. Call once, before the first round."""
        if saved.progress is not None:
            self.reading.restore(saved.progress, now)
            self.books.restore(saved.progress)
        self.addresses.restore(saved.granted)
        lost = saved.kept()
        restorer = Restorer(self._decoders, self._rules.skew / 1000, self.refused)
        for record in restorer.records(saved, self.reading, now):
            if isinstance(record, Outdated):
                self._outdated.append(record)
                lost[record.envelope.entity] -= 1
            else:
                self.parking.add(record)
                lost[record.entity] -= 1
        self._lost = {entity: count for entity, count in lost.items() if count > 0}
        self._unasked = saved.doubtful
        self.restored = True

    def begin(
        self,
        topics: Mapping[str, str],
        starts: Mapping[str, int],
        others: Mapping[str, str] = _NONE,
    ) -> Missed:
        """Begin with the inputs (`INPUTS`) as they are now. Call once, after `restore`.

        Returns what `Reading.begin` finds missing, and the lost parked records. Enters both in the
        books.
        """
        missed = self.reading.begin(topics, starts, others)._replace(parked=self._lost)
        self._unasked = (
            self._unasked or GRANTED in missed.others or not _ASKED.isdisjoint(missed.recreated)
        )
        if self._lost:
            self.books.incident(PARKED_LOST, sum(self._lost.values()))
        for count in missed.expired.values():
            self.books.incident(INPUT_EXPIRED, count)
        for name in missed.others:
            self.books.incident(_RECREATED[name.partition(".")[0]])
        if missed.recreated:
            self.books.incident(INPUT_RECREATED, len(missed.recreated))
        return missed

    def flush_parked(self, now: Moment) -> list[ProducerRecord]:
        """Copies of held records: write them before the task may be without an owner for long.

        One call returns one decision's worth, with the checkpoint: call again until the list is
        empty. Call only when everything that this task has decided is committed. Decide nothing
        afterwards.
        """
        if self.restored:  # the log is complete, and requests are not repeated yet
            return []
        messages: list[ProducerRecord] = []
        self._out = Outbox(self.number, self._rules, now.wall, messages)
        self._keep_waiting(now.steady)
        self._save()
        return messages

    def strike_out(self, owners: Iterable[str]) -> None:
        """These earlier owners are fenced: the next round writes their tombstones."""
        self._struck += owners

    def write_again(self, identities: Mapping[str, str]) -> None:
        """A topic of this running task's state was recreated or emptied: write all state again.

        `identities` has the current identities of all state topics, by their names in the
        checkpoint.
        """
        self._copies = deque(parked for parked in self.parking if parked.kept)
        self.reading.topics |= identities
        self.writes_again = True

    def _take_up(self) -> None:
        """Re-evaluate restored records: notifications were missed while the task was down."""
        # Reject outdated users in this decision, full or not: they are few. A later owner may
        # accept one by other rules, at the head of its queue, and wait for a reply already read.
        outdated = list(self._outdated)
        self._outdated.clear()
        for record in outdated:
            if record.envelope.entity == "users":
                self._reject_outdated(record)
            else:
                self._outdated.append(record)
        heads = [parked for parked in self.parking if self.parking.is_head(parked)]
        for parked in heads:
            if parked.entity != "users":
                self._to_try.append(parked)
                continue
            # A user requests its address on reaching the head of its queue. Repeat old requests:
            # they or their replies may have expired. Behind an outdated record, a user may never
            # have sent its request.
            old = self._now.steady - parked.first_read.steady >= _CLAIM_AGAIN_MS
            parked.claimed = not (old or outdated or self._unasked)
            parked.attempt += not parked.claimed
            self._try(parked)
        if self._unasked:  # releases of our reservations may be lost as well
            for granted in self.addresses:
                self._out.answer_again(granted)
        self._unasked = self.restored = False

    # --- deciding -----------------------------------------------------------------------------

    def needs_synchronised(
        self,
        messages: Sequence[Message],
        peers: Mapping[int, Task],
        recent: RecentRows,
        now: Moment,
    ) -> bool:
        """Whether this batch needs an index that shows every committed row.

        `peers` are the tasks of the worker, this task included.
        """
        if self.restored or self.addresses.crowded:
            return True
        for address, user in self._asked(messages, now.wall):
            owner = peers.get(owner_of(address, self._rules.tasks))
            if owner is not None and owner.addresses.contested(address, user, recent):
                return True
        return False

    def _asked(self, messages: Sequence[Message], now: int) -> Iterator[tuple[bytes, bytes]]:
        """The addresses that a batch requests, each with the requesting user."""
        users = []
        for message in messages:
            name = self.inputs[message.topic]
            if name == CLAIMS:
                claim = read_claim(message.value, self.number, self._rules.tasks)
                if isinstance(claim, ReservationRequest):
                    yield claim.address, claim.user
            elif name == "users":
                users.append(message)
        decode = self._sorters["users"].decoder.decode_all
        values, keys = [m.value for m in users], [m.key for m in users]
        arrivals = [_arrival(m, now) for m in users]
        try:
            outcomes = decode(values, keys, arrivals, self._rules.skew / 1000)
        except Exception:  # noqa: BLE001 -- it fails again in `read`, which isolates the record
            return
        self._decoded = {m.offset: outcome for m, outcome in zip(users, outcomes, strict=True)}
        for outcome in outcomes:
            if isinstance(outcome, Decoded) and outcome.address is not None:
                yield outcome.address, id_bytes(outcome.key.decode())

    def begin_round(
        self,
        peers: Mapping[int, Task],
        recent: RecentRows,
        now: Moment,
        messages: list[ProducerRecord],
    ) -> None:
        """Begin a round in which this task decides. Its messages are appended to `messages`.

        `peers` are the tasks that decide together, this task included.
        """
        self._peers = peers
        self._recent = recent
        self._now = now
        self._out = Outbox(self.number, self._rules, now.wall, messages)
        self._takes_over = self.restored
        if self.restored:
            self._take_up()
        self._go_on()

    def wake(self, known: Iterable[bytes]) -> None:
        """Evaluate the records that wait for these newly known ids."""
        for id_ in known:
            self._to_try.extend(self.parking.waiting_for(id_))
        self._go_on()

    def end_round(self) -> Tally:
        """Write the remaining messages of the round. Returns the tally of the decision."""
        self._keep_waiting(self._now.steady - self._rules.hold)
        if self.writes_again:
            self._write_again()
        for owner in self._struck:
            self._out.strike_out(owner)
        self._struck = []
        self._save(anyhow=self._takes_over)
        self._decoded = {}
        self._peers = {}
        return self._out.tally

    def has_to_keep(self, now: Moment) -> bool:
        """Whether held records are due to be persisted: a round writes their copies."""
        return bool(self.parking.to_keep(now.steady - self._rules.hold, self._may_hold()))

    @property
    def can_give_up(self) -> bool:
        """Whether parked records can proceed without new input: a round settles them.

        Either a frontier has been passed, or a decision had no room for all of them.
        """
        return bool(
            self._to_try or self._outdated or any(frontier.passed for frontier in self._noted)
        )

    @property
    def waiting(self) -> int:
        """How many records past their grace period wait for a definitive verdict."""
        return len(self._overdue) + len(self._at_frontier)

    def overdue(self, now: Moment) -> bool:
        """Whether records past their grace period need a frontier."""
        fresh = self.parking.overdue(now.steady - self._rules.grace)
        self._overdue += [parked for parked in fresh if parked.has_references]
        self._overdue = [parked for parked in self._overdue if self.parking.holds(parked)]
        return bool(self._overdue)

    def await_frontiers(self, users: Frontier, matches: Frontier) -> list[Frontier]:
        """Make each overdue record wait for the frontier that covers its references.

        Returns those of the two frontiers that records wait for.
        """
        for parked in self._overdue:
            parked.frontier = matches if parked.refers_to_matches else users
        awaited = [b for b in (users, matches) if any(p.frontier is b for p in self._overdue)]
        self._at_frontier += self._overdue
        self._overdue = []
        self._noted += awaited
        return awaited

    def awaited(self) -> list[Frontier]:
        """The frontiers that parked records still wait for."""
        self._at_frontier = [parked for parked in self._at_frontier if self.parking.holds(parked)]
        awaited = {id(parked.frontier) for parked in self._at_frontier}
        self._noted = [frontier for frontier in self._noted if id(frontier) in awaited]
        return self._noted

    # --- one record ---------------------------------------------------------------------------

    def read(self, entity: str, batch: Sequence[Message]) -> None:
        """Judge a batch of one entity's records."""
        if not batch:
            return
        again = self.reading.first_read(entity)
        batch = self.reading.undone(entity, batch)
        counted = sum(m.offset in again for m in batch) if again else 0
        self._out.tally.read[entity] += len(batch) - counted
        if self.refused:
            batch = self._isolate(entity, batch)
        if not batch:
            return
        decode, now, skew = self._decoders[entity].decode, self._now, self._rules.skew / 1000
        arrivals = [m.timestamp if m.appended else again.get(m.offset, now).wall for m in batch]
        others: Iterable[tuple[int, Outcome | None]]
        if entity == "users" and self._decoded:
            others = self._accept_users(batch)
        else:
            others = self._sort_out(entity, batch, arrivals)
        for place, known in others:
            message, arrival = batch[place], arrivals[place]
            first_read = again.get(message.offset, now)
            try:
                outcome = known or decode(message.value, message.key, latest_moment(arrival, skew))
                settled = (
                    not isinstance(outcome, Invalid)
                    and not self.parking.queued(entity, outcome.key)
                    and self._accept_at_once(entity, message, outcome)
                )
            except BuddyError:  # the index fails, not the record
                raise
            except Exception as error:  # noqa: BLE001 -- isolated: never a crash loop for one record
                self._fail(entity, message, error)
                continue
            if isinstance(outcome, Invalid):
                self._out.reject(entity, message, outcome)
            elif not settled:
                where = self.reading.place(entity, message.offset)
                self._begin(Parked(entity, message, outcome, arrival, first_read, where))

    def _sort_out(
        self, entity: str, batch: Sequence[Message], arrivals: Sequence[int]
    ) -> list[tuple[int, Outcome | None]]:
        """Accept plainly good records that wait for nothing. Returns the others by place, in order.

        Each of them comes with its decoding outcome, if known.
        """
        queued, skew = self.parking.queues(entity).keys(), self._rules.skew / 1000
        try:
            found = self._sorters[entity].sort_out(batch, arrivals, skew, queued, self._recent)
        except BuddyError:
            raise
        except Exception:  # noqa: BLE001 -- judge each record alone, to isolate the faulty one
            return [(place, None) for place in range(len(batch))]
        good = found.at_once
        if good.keys:
            messages = [batch[place] for place in good.places]
            first = self._out.accept_all(entity, messages, good.keys, good.encoded)
            if entity == "matches":
                self._recent.accept_matches(good.keys, first)
        return [*found.others]

    def _accept_users(self, batch: Sequence[Message]) -> Iterator[tuple[int, Outcome | None]]:
        """As `_sort_out`, for users whose address a task of this worker grants at once.

        Settle each yielded record before the next one is requested. All records before a yielded
        record are accepted already. So an address changes hands in the order of the records.
        """
        run: list[Message] = []
        rows: list[Decoded] = []
        first = self._out.next_index

        def publish() -> None:
            keys, encoded = [row.key for row in rows], [row.row for row in rows]
            self._out.accept_all("users", run, keys, encoded)

        for place, message in enumerate(batch):
            outcome = self._decoded.get(message.offset)
            if (
                isinstance(outcome, Decoded)
                and not self.parking.queued("users", outcome.key)
                and self._grant(outcome)
            ):
                self._recent.accept("users", outcome, first + len(run))
                run.append(message)
                rows.append(outcome)
                continue
            if run:
                publish()
                run, rows = [], []
            yield place, outcome
            first = self._out.next_index
        if run:
            publish()

    def _grant(self, row: Decoded) -> bool:
        """Whether a user without warnings and unknown fields gets its address at once."""
        if row.address is None or row.warnings or row.unknown_fields:
            return False
        owner = self._peers.get(owner_of(row.address, self._rules.tasks))
        user = id_bytes(row.key.decode())
        return owner is not None and bool(owner.addresses.at_once(row.address, user, self._recent))

    def _isolate(self, entity: str, batch: Sequence[Message]) -> list[Message]:
        """Reject the records whose outcome the broker refuses. Returns the others."""
        others = []
        for message in batch:
            refusals = self.refused.get((entity, message.offset))
            if refusals is None:
                others.append(message)
            else:
                self._out.isolate(entity, message, refusals)
        return others

    def _accept_at_once(self, entity: str, message: Message, outcome: Decoded | Deletion) -> bool:
        """The fast path of most records: no address, and nothing unknown to wait for or warn of."""
        if isinstance(outcome, Deletion) or outcome.address is not None:
            return False
        recent = self._recent
        for user in outcome.users:
            if user and not recent.user(user):
                return False
        for match in outcome.matches:
            if match and not recent.match(match):
                return False
        if outcome.attendees and any(unknown_attendees(outcome, recent)):
            return False
        index = self._out.accept(entity, message, outcome, outcome.warnings)
        if entity == "matches":
            recent.accept(entity, outcome, index)
        return True

    def _begin(self, parked: Parked) -> None:
        """Settle a newly read record, or park it."""
        behind = self.parking.queued(parked.entity, parked.outcome.key)
        wanted = [] if behind else self._settle(parked, again=False)
        if behind or wanted:
            # Persist a user at once: its reply comes once, so the next owner must know the record.
            parked.kept = parked.entity == "users"
            if parked.kept:
                self._out.keep(parked)
            self.parking.add(parked)
            self.parking.want(parked, wanted)
            if parked.message.offset not in self.reading.first_read(parked.entity):
                self._out.tally.parked[parked.entity] += 1

    def _settle(self, parked: Parked, *, again: bool) -> list[bytes]:
        """Accept, delete or reject a record. Returns the ids it waits for: if any, it is undecided.

        `again` means that something has changed since the last evaluation.
        """
        try:
            if again and self._accept_at_once(parked.entity, parked.message, parked.outcome):
                return []
            return self._weigh(parked.entity, parked.message, parked.outcome, parked)
        except BuddyError:
            raise
        except Exception as error:  # noqa: BLE001 -- isolated, as above
            self._fail(parked.entity, parked.message, error)
            return []

    def _weigh(
        self, entity: str, message: Message, outcome: Decoded | Deletion, parked: Parked
    ) -> list[bytes]:
        if isinstance(outcome, Deletion):
            index = self._out.delete(entity, message, outcome)
            self._recent.delete(entity, outcome.key, index)
            return []
        users, matches = missing(outcome, self._recent)
        if (users or matches) and not _is_definite(parked.frontier, matches):
            return users + matches
        taken = False
        if outcome.address is not None:
            granted = self._ask(parked, outcome.address, id_bytes(outcome.key.decode()))
            if granted is None:
                return [_claim_id(parked.place)]
            taken = not granted
        decoder = self._decoders[entity]
        violations = verdict(decoder, outcome, self._recent, users, matches, taken=taken)
        if rejects(violations):
            self._out.reject(entity, message, Invalid(outcome.key, violations))
        else:
            index = self._out.accept(entity, message, outcome, violations)
            self._recent.accept(entity, outcome, index)
        return []

    def _fail(self, entity: str, message: Message, error: Exception) -> None:
        """Reject a record whose judging failed, so that it blocks nothing else."""
        self._out.tally.failures.append((coordinate(message), type(error).__name__))
        self._out.reject(entity, message, Invalid(None, (unexpected(),), malformed=True))

    # --- parked records -----------------------------------------------------------------------

    def _go_on(self) -> None:
        """Settle what is ready while the decision has room; the next decision settles the rest."""
        while self._outdated and not self._out.is_full:
            self._reject_outdated(self._outdated.popleft())
        while self._to_try and not self._out.is_full:
            self._try(self._to_try.popleft())

    def _reject_outdated(self, outdated: Outdated) -> None:
        envelope, invalid = outdated
        message = envelope.message()
        if refusals := self.refused.get((envelope.entity, envelope.offset)):
            self._out.isolate(envelope.entity, message, refusals)
        else:
            self._out.reject(envelope.entity, message, invalid)
        self._out.drop(envelope.entity, envelope.place)

    def _try(self, first: Parked) -> None:
        """Settle a parked record if possible, and then the records behind it."""
        parked: Parked | None = first
        while parked is not None and self.parking.is_head(parked):
            # A user requests its address as soon as it heads its queue, even if the decision is
            # full: the next owner relies on the request.
            if parked is not first and parked.entity != "users" and self._out.is_full:
                self._to_try.appendleft(parked)
                return
            wanted = self._settle(parked, again=True)
            if wanted:
                self.parking.want(parked, wanted)
                return
            if parked.kept:
                self._out.drop(parked.entity, parked.place)
            settled, parked = parked, self.parking.release(parked)
            if parked is not None:
                self._pass_on(settled, parked)

    def _pass_on(self, settled: Parked, following: Parked) -> None:
        """Let a remote owner's grant cover the user's next version with the same address.

        This decision releases the reservation, so it must settle both versions.
        """
        if not settled.granted or self._out.is_full:
            return
        row, after = settled.outcome, following.outcome
        if isinstance(row, Decoded) and isinstance(after, Decoded) and row.address == after.address:
            following.granted = True

    def _keep_waiting(self, latest: int) -> None:
        """Persist records first read at `latest` or before (steady clock), oldest first."""
        most = self._may_hold()
        # Too many held records would make the checkpoint larger than its topic accepts.
        for parked in self.parking.to_keep(_NEVER, most):
            self._keep(parked)
        for parked in self.parking.to_keep(latest, most):
            if self._out.is_full:
                return
            self._keep(parked)

    def _keep(self, parked: Parked) -> None:
        self._out.keep(parked)
        self.parking.keep(parked)

    def _write_again(self) -> None:
        """Write what a recreated topic lacks, as far as the decision has room."""
        while self._copies and not self._out.is_full:
            parked = self._copies.popleft()
            if self.parking.holds(parked):
                self._out.keep(parked)
        if not self._copies:
            for granted in self.addresses:
                self._out.granted(granted)
            if self.owner:
                self._out.take_over(self.owner)
            self.writes_again = False

    def _may_hold(self) -> int:
        """How many records may be held, besides those still to be read again."""
        return self._most_held - self.reading.left

    def _save(self, *, anyhow: bool = False) -> None:
        """Write the checkpoint if it has changed, or if the decision writes anything else.

        `anyhow` writes it always, to name the worker.
        """
        anyhow = anyhow or not self._out.is_empty
        for offsets in self._out.tally.unreadable.values():
            self.books.incident(UNREADABLE_INTERNAL, len(offsets))
        young = self.parking.young("users", self._now.steady - GRANT_PATIENCE_MS)
        if young is not None and "users" in self.reading.until:
            self.reading.until["users"] = min(self.reading.until["users"], young.arrival - 1)
        progress = self.reading.save(self.parking, self.books, self._out.tally, anyhow=anyhow)
        if progress is not None:
            self._out.progress(progress)

    def give_up(self) -> None:
        """Settle the records whose frontier has been passed."""
        passed = [p for p in self._at_frontier if p.frontier is not None and p.frontier.passed]
        self._at_frontier = [p for p in self._at_frontier if p.frontier and not p.frontier.passed]
        self._noted = [frontier for frontier in self._noted if not frontier.passed]
        # A record that queues behind its key keeps its frontier, and is settled in its turn.
        self._to_try.extend(passed)
        self._go_on()

    # --- addresses ----------------------------------------------------------------------------

    def _ask(self, parked: Parked, address: bytes, user: bytes) -> bool | None:
        """Whether the address is granted; None until the owner replies."""
        if parked.granted is not None:
            return parked.granted
        if parked.claimed:
            return None
        owner = self._peers.get(owner_of(address, self._rules.tasks))
        # An earlier request may be in the log still: a grant for a judged record would keep the
        # address from others. Behind it, the next request is answered before it is released.
        if owner is not None and not parked.attempt:
            decided = owner.addresses.at_once(address, user, self._recent)
            if decided is not None:
                return decided
        parked.claimed = True
        self._out.claim(address, user, parked)
        if parked.attempt:
            self._out.keep(parked)  # the next owner must know which reply counts
        return None

    def answer(self, message: Message) -> None:
        """Reply to a reservation request, or apply a release."""
        asked = read_claim(message.value, self.number, self._rules.tasks)
        if asked is None:
            self._out.unreadable(message)
        elif isinstance(asked, ReservationRequest):
            self._out.answer(asked, self.addresses.claim(asked, self._recent))
        elif (left := self.addresses.settle(asked)) is not None:
            self._out.granted(left)

    def take_grant(self, message: Message) -> None:
        """Apply the reply to a request of this task. A reply may come late, and twice."""
        answer = read_grant(message.value)
        if answer is None:
            self._out.unreadable(message)
            return
        for parked in self.parking.waiting_for(_claim_id(answer.offset)):
            if answer.granted or answer.attempt == parked.attempt:
                parked.granted = answer.granted
                self._try(parked)
        if answer.granted:  # even if no record waits for the reply
            self._out.settled(answer.address, answer.offset)


def _arrival(message: Message, now: int) -> int:
    """The broker's append time, whatever the local clock says; `now` if there is none."""
    return message.timestamp if message.appended else now


def _claim_id(place: int) -> bytes:
    """The pseudo-id that a user waits for after a request; no id has this length."""
    return b"claim" + place.to_bytes(8, "big")


def _is_definite(frontier: Frontier | None, matches: list[bytes]) -> bool:
    """Whether the missing references, `matches` included, can no longer be on their way."""
    return frontier is not None and frontier.passed and (frontier.covers_matches or not matches)
