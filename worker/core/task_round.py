"""The part of one task in a round: it turns a batch into messages.

What happens to a record:

1. It is decoded (`decode`), and rejected if its own fields have errors.
2. It queues behind an earlier parked record of its key.
3. It is parked while a reference is unknown, or while its address is not granted.
4. It is accepted, or rejected because a user is definitely missing or its address is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from worker.core.addresses import Addresses, ReservationRequest
from worker.core.decode import Decoded, DecodeResult, Invalid, latest_moment
from worker.core.internal import read_reply, read_request
from worker.core.judge import Judge, request_id
from worker.core.moments import Moment
from worker.core.outbox import Outbox, Tally
from worker.core.parked import Parked, State
from worker.core.recent import RecentRows
from worker.core.restoring import Outdated
from worker.core.task import Task
from worker.errors import BuddyError
from worker.stream import Message, ProducerRecord


class TaskRound:
    """What one task decides in one round; lives as long as the round.

    Its messages are appended to `messages`. `reservations` are those of the worker's tasks, by
    task. `decoded` are outcomes of users in the batch, by offset (`Task.decode_users`).
    """

    def __init__(
        self,
        task: Task,
        reservations: Mapping[int, Addresses],
        recent: RecentRows,
        now: Moment,
        messages: list[ProducerRecord],
        decoded: Mapping[int, DecodeResult],
    ) -> None:
        self.task = task
        self._recent = recent
        self._now = now
        self._decode_results = decoded
        self._out = Outbox(task.number, task.settings, now.wall, messages)
        self._judge = Judge(task.decoders, reservations, task.settings.tasks, recent, self._out)
        self._is_first_round = task.awaits_first_round
        """Whether this is the first round here: its checkpoint must name this worker."""

    def settle_waiting(self) -> None:
        """Settle what can proceed without new input."""
        if self._is_first_round:
            self._reconsider_restored()
        self._ask_again()
        self._proceed()

    def wake(self, known: Iterable[bytes]) -> None:
        """Evaluate the records that wait for these newly known ids."""
        for id_ in known:
            self.task.ready.extend(self.task.parking.waiting_for(id_))
        self._proceed()

    def judge_passed(self) -> None:
        """Settle the records whose frontier has been passed."""
        # A record that queues behind its key keeps its frontier, and is settled in its turn.
        self.task.ready.extend(self.task.parking.take_passed())
        self._proceed()

    def end(self) -> Tally:
        """Write the task's state and checkpoint. Returns the tally of the decision."""
        task = self.task
        task.persist_parked(self._out, self._now.steady - task.settings.persist_after)
        task.write_state(self._out)
        task.save(self._out, self._now, always=self._is_first_round)
        return self._out.tally

    # --- a batch ------------------------------------------------------------------------------

    def judge_batch(self, entity: str, batch: Sequence[Message]) -> None:
        """Judge a batch of one entity's records."""
        if batch:
            batch = self.task.reading.undone(entity, batch)
            self._judge_undone(entity, batch)
            self.task.settle_unneeded(self._out, entity, batch)

    def _judge_undone(self, entity: str, batch: Sequence[Message]) -> None:
        task = self.task
        again = task.reading.first_read(entity)
        counted = sum(m.offset in again for m in batch) if again else 0
        self._out.tally.read[entity] += len(batch) - counted
        if task.commit_refusals:
            batch = self._isolate(entity, batch)
        if not batch:
            return
        decode, now = task.decoders[entity].decode, self._now
        skew = task.settings.skew / 1000
        arrivals = [m.timestamp if m.appended else again.get(m.offset, now).wall for m in batch]
        others: Iterable[tuple[int, DecodeResult | None]]
        if entity == "users" and self._decode_results:
            others = self._accept_users(batch)
        else:
            others = self._sort_out(entity, batch, arrivals)
        for index, known in others:
            message, arrival = batch[index], arrivals[index]
            try:
                outcome = known or decode(message.value, message.key, latest_moment(arrival, skew))
            except Exception as error:  # noqa: BLE001 -- isolated: never a crash loop for one record
                self._judge.fail(entity, message, error)
                continue
            if isinstance(outcome, Invalid):
                self._out.reject(entity, message, outcome)
            else:
                first_read = again.get(message.offset, now)
                ordinal = task.reading.ordinal(entity, message.offset)
                self._settle_or_park(Parked(entity, message, outcome, arrival, first_read, ordinal))

    def _sort_out(
        self, entity: str, batch: Sequence[Message], arrivals: Sequence[int]
    ) -> list[tuple[int, DecodeResult | None]]:
        """Accept plainly good records that wait for nothing. Returns the others by index, in order.

        Each of them comes with its decoding outcome, if known.
        """
        task = self.task
        queued, skew = task.parking.queues(entity).keys(), task.settings.skew / 1000
        try:
            found = task.sorters[entity].sort_out(batch, arrivals, skew, queued, self._recent)
        except BuddyError:
            raise
        except Exception:  # noqa: BLE001 -- judge each record alone, to isolate the faulty one
            return [(index, None) for index in range(len(batch))]
        good = found.at_once
        if good.keys:
            messages = [batch[index] for index in good.indices]
            first = self._out.accept_all(entity, messages, good.keys, good.encoded)
            if entity == "matches":
                self._recent.accept_matches(good.keys, first)
        return [*found.others]

    def _accept_users(self, batch: Sequence[Message]) -> Iterator[tuple[int, DecodeResult | None]]:
        """As `_sort_out`, for users whose address a task of this worker grants at once.

        Settle each yielded record before the next one is requested. All records before a yielded
        record are accepted already. So an address changes hands in the order of the records.
        """
        run: list[Message] = []
        rows: list[Decoded] = []
        first = self._out.next_position

        def publish() -> None:
            keys, encoded = [row.key for row in rows], [row.row for row in rows]
            self._out.accept_all("users", run, keys, encoded)

        queued = self.task.parking.queues("users")
        for index, message in enumerate(batch):
            outcome = self._decode_results.get(message.offset)
            if (
                isinstance(outcome, Decoded)
                and outcome.key not in queued
                and self._judge.grant(outcome)
            ):
                self._recent.accept("users", outcome, first + len(run))
                run.append(message)
                rows.append(outcome)
                continue
            if run:
                publish()
                run, rows = [], []
            yield index, outcome
            first = self._out.next_position
        if run:
            publish()

    def _isolate(self, entity: str, batch: Sequence[Message]) -> list[Message]:
        """Reject the records whose outcome the broker refuses. Returns the others."""
        others = []
        for message in batch:
            refusals = self.task.commit_refusals.get((entity, message.offset))
            if refusals is None:
                others.append(message)
            else:
                self._out.isolate(entity, message, refusals)
        return others

    # --- parked records -----------------------------------------------------------------------

    def _settle_or_park(self, parked: Parked) -> None:
        """Settle a newly read record, or park it."""
        task = self.task
        behind = task.parking.queued(parked.entity, parked.decoded.key)
        wanted = [] if behind else self._judge.judge(parked)
        if behind or wanted:
            # Persist a user at once: its reply comes once, so the next owner must know the record.
            parked.persisted = parked.entity == "users"
            if parked.persisted:
                self._out.persist(parked)
            parked.tried = self._now.steady
            task.parking.add(parked)
            task.parking.want(parked, wanted)
            if parked.message.offset not in task.reading.first_read(parked.entity):
                self._out.tally.parked[parked.entity] += 1

    def _reconsider_restored(self) -> None:
        """Re-evaluate restored records: notifications were missed while the task was down."""
        task = self.task
        # Reject outdated users in this decision, full or not: they are few. A later owner may
        # accept one by other rules, at the head of its queue, and wait for a reply already read.
        outdated = list(task.outdated)
        task.outdated.clear()
        for record in outdated:
            if record.envelope.entity == "users":
                self._reject_outdated(record)
            else:
                task.outdated.append(record)
        heads = [parked for parked in task.parking if task.parking.is_head(parked)]
        for parked in heads:
            if parked.state is not State.UNREQUESTED:  # no user's row: it asks for no address
                task.ready.append(parked)
                continue
            # A user requests its address on reaching the head of its queue. Repeat old requests:
            # they or their replies may have expired. Behind an outdated record, a user may never
            # have sent its request.
            old = self._now.steady - parked.first_read.steady >= parked.reply_patience
            if old or outdated or task.doubtful:
                parked.attempt += 1
            else:
                parked.move(State.REQUESTED)
            self._try(parked)
        if task.doubtful:  # releases of our reservations may be lost as well
            for reservation in task.addresses:
                self._out.reply_again(reservation)
        task.doubtful = task.awaits_first_round = False

    def _ask_again(self) -> None:
        """Repeat requests without a reply, and replies without a release: they may be lost.

        A lost message that nobody had read leaves no other trace.
        """
        task = self.task
        while task.has_to_ask_again(self._now) and not self._out.is_full:
            if task.unreleased:
                self._out.reply_again(task.unreleased.popleft())
                continue
            parked = task.unanswered.popleft()
            if parked.state is State.REQUESTED and task.parking.is_parked(parked):
                parked.attempt += 1
                parked.move(State.UNREQUESTED)
                self._try(parked)

    def _proceed(self) -> None:
        """Settle what is ready while the decision has room; the next decision settles the rest."""
        outdated, ready = self.task.outdated, self.task.ready
        while outdated and not self._out.is_full:
            self._reject_outdated(outdated.popleft())
        while ready and not self._out.is_full:
            self._try(ready.popleft())

    def _reject_outdated(self, outdated: Outdated) -> None:
        envelope, invalid = outdated
        message = envelope.message()
        if refusals := self.task.commit_refusals.get((envelope.entity, envelope.offset)):
            self._out.isolate(envelope.entity, message, refusals)
        else:
            self._out.reject(envelope.entity, message, invalid)
        self._out.drop(envelope.entity, envelope.ordinal)

    def _try(self, first: Parked) -> None:
        """Settle a parked record if possible, and then the records behind it."""
        parking = self.task.parking
        parked: Parked | None = first
        while parked is not None and parking.is_head(parked):
            # A user requests its address as soon as it heads its queue, even if the decision is
            # full: the next owner relies on the request.
            if parked is not first and parked.entity != "users" and self._out.is_full:
                self.task.ready.appendleft(parked)
                return
            wanted = self._judge.judge(parked)
            if wanted:
                parked.tried = self._now.steady
                parking.want(parked, wanted)
                return
            if parked.persisted:
                self._out.drop(parked.entity, parked.ordinal)
            settled, parked = parked, parking.remove(parked)
            if parked is not None and not self._out.is_full and _covers(settled, parked):
                parked.move(State.GRANTED)

    # --- addresses ----------------------------------------------------------------------------

    def apply_request_or_release(self, message: Message) -> None:
        """Reply to a reservation request, or apply a release."""
        task = self.task
        asked = read_request(message.value, task.number, task.settings.tasks)
        if asked is None:
            self._out.unreadable(message)
        elif isinstance(asked, ReservationRequest):
            self._out.reply(asked, task.addresses.reserve(asked, self._recent))
        elif (left := task.addresses.release(asked)) is not None:
            self._out.reserve(left)

    def apply_reply(self, message: Message) -> None:
        """Apply the reply to a request of this task. A reply may come late, and twice."""
        reply = read_reply(message.value)
        if reply is None:
            self._out.unreadable(message)
            return
        for parked in self.task.parking.waiting_for(request_id(reply.ordinal)):
            if reply.granted or reply.attempt == parked.attempt:
                parked.move(State.GRANTED if reply.granted else State.REFUSED)
                self._try(parked)
        if reply.granted:  # even if no record waits for the reply
            self._out.release(reply.address, reply.ordinal)


def _covers(settled: Parked, following: Parked) -> bool:
    """Whether a remote owner's grant also covers the user's next version, with the same address.

    The decision releases the reservation, so it must settle both versions.
    """
    row, after = settled.decoded, following.decoded
    return (
        settled.state is State.GRANTED
        and isinstance(row, Decoded)
        and isinstance(after, Decoded)
        and row.address == after.address
    )
