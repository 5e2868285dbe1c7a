"""What must hold: after every commit, and at the end. It knows the logs, and nothing of tasks.

Ticks are those of the cluster: every appended input and every decided transaction has its own.
"""

from __future__ import annotations

from base64 import b64decode
from bisect import bisect_left
from collections import Counter
from typing import Final

import msgspec

from tests.proofs.simulation import foreseen
from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.log import Transaction
from tests.proofs.simulation.internals import Internals
from tests.proofs.simulation.records import Outcome, Records, Sent
from tests.proofs.simulation.settings import Settings
from worker.brokers.partitioner import partition_for
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.stream import Message, Partition

_NOT_YET: Final = 1 << 60
_USER_FIELDS: Final = {"participant_id": 0, "buddy_id": 1, "user_id": 0}
INDEXED: Final = ("users", "matches")


class Broken(Exception):
    """A promise is broken."""


class _Found(msgspec.Struct):
    code: str
    field: str


class _Rejection(msgspec.Struct):
    violations: list[_Found]
    record_base64: str | None = None


_read_rejection = msgspec.json.Decoder(_Rejection).decode


class Tenure(msgspec.Struct):
    """A user had an address, from the sending of the record that asked for it, to the next row."""

    user: str
    since: int
    until: int = _NOT_YET


class Promises:
    """Watches every commit; `check` at the end."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self._settings = settings
        self._names = settings.rules.names
        self._cluster = cluster
        self.internals = Internals(self._names, settings.rules.tasks)
        self.records = Records(self._names)
        self.sent = self.records.sent
        self.outcomes: dict[str, Outcome] = {}
        """By source; the latest, where a record was judged again."""
        self.latest_outcome = 0
        """When the latest of them was published."""
        self._times: Counter[str] = Counter()
        """How often each record came out."""
        self._parked: set[str] = set()
        """The records that were ever parked and stood in the log as such."""
        self._latest: dict[str, tuple[int, str | None]] = {}
        self._holders: dict[str, list[str]] = {}
        self._open: dict[str, Tenure] = {}
        self._tenures: dict[str, list[Tenure]] = {}
        self._changes: dict[tuple[str, str], list[tuple[int, bool, int]]] = {}
        """By entity and id: offset of the row, whether it is there, when it was committed."""
        self._deleted: set[tuple[str, str, int, int]] = set()
        """Entity, id, partition and tick of deletions that were judged when they were read."""
        self._judged: Counter[tuple[str, str, int]] = Counter()
        """By entity, id and tick: how many records were judged together."""

    # --- at every commit ----------------------------------------------------------------------

    def committed(self, transaction: Transaction) -> None:
        """Take in what a transaction brings. Raises Broken."""
        for coordinate, key, value in self.internals.copies(transaction):
            # A record gets its copy once, but for users, whose values tell them apart.
            source = self._find(coordinate, key, value, copied=True).source
            self.records.copied.add(source)
            self._parked.add(source)
        self._parked.update(self.internals.held(transaction))
        moved: list[str] = []
        for message in transaction.messages:
            if message.topic.split(".")[1] in {"accepted", "rejected"}:
                self._outcome(message, transaction, moved)
        for address in moved:
            if len(self._holders[address]) > 1:
                raise Broken(f"{address} has two holders: {self._holders[address]}")

    def _find(self, coordinate: str, key: str, value: bytes | None, *, copied: bool) -> Sent:
        done = self.records.copied if copied else self.outcomes
        sent = self.records.find(coordinate, key, value, done)
        if sent is None:
            raise Broken(f"{coordinate} is not what was read there: {value!r}")
        return sent

    def _outcome(self, message: Message, transaction: Transaction, moved: list[str]) -> None:
        headers, tick = dict(message.headers), transaction.tick
        coordinate = headers[SOURCE_HEADER].decode()
        key, value = (message.key or b"").decode(), message.value
        if value is not None and message.topic.split(".")[1] == "rejected":
            rejection = _read_rejection(value)
            value += b64decode(rejection.record_base64 or "")
        sent = self._find(coordinate, key, value, copied=False)
        source = sent.source
        self._times[source] += 1
        if self._times[source] > self.records.outcomes_of(sent):
            raise Broken(f"{source} has two outcomes: {self.outcomes[source]} and {message}")
        if message.topic == self._names.accepted(sent.entity):
            codes = tuple(filter(None, headers.get(WARNINGS_HEADER, b"").decode().split(",")))
            lost = sent.matches if "orphaned_match_id" in codes else ()
            orphans = tuple(("matches", match) for match in lost)
            if key != sent.key or (message.value is None) != (sent.kind == "deletion"):
                raise Broken(f"{source} was accepted as {message}")
            if sent.entity in INDEXED:
                change = (message.offset, message.value is not None, tick)
                self._changes.setdefault((sent.entity, sent.key), []).append(change)
                if message.value is None and source not in self._parked:
                    self._deleted.add((sent.entity, sent.key, sent.partition, tick))
            if sent.entity == "users":
                self._move(sent, message.offset, tick, moved)
        elif message.topic == self._names.rejected(sent.entity):
            found = rejection.violations
            codes = tuple(violation.code for violation in found)
            orphans = tuple(_orphan(v, sent) for v in found if v.code.startswith("orphaned"))
        else:
            raise Broken(f"{source} came out as {message}")
        self._judged[sent.entity, sent.key, tick] += 1
        self.latest_outcome = now = self._cluster.clock()
        self.outcomes[source] = Outcome(
            message.topic, message.partition, message.offset, tick, now, codes, orphans
        )

    def _move(self, sent: Sent, offset: int, tick: int, moved: list[str]) -> None:
        """A row or deletion of a user: who has which address now, and since when."""
        user, address = sent.key, sent.address
        before, held = self._latest.get(user, (-1, None))
        if offset < before:  # a later row was committed first: this one never counted
            if address is not None:
                self._tenures.setdefault(address, []).append(Tenure(user, sent.tick, tick))
            return
        self._latest[user] = (offset, address)
        if held is not None:
            self._holders[held].remove(user)
            self._open.pop(user).until = tick
        if address is not None:
            self._holders.setdefault(address, []).append(user)
            tenure = self._open[user] = Tenure(user, sent.tick)
            self._tenures.setdefault(address, []).append(tenure)
            moved.append(address)

    # --- at the end ---------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many records there were, and what became of them."""
        kinds = Counter(outcome.kind for outcome in self.outcomes.values())
        return {
            "records": len(self.sent),
            "accepted or deleted": kinds["accepted"],
            "rejected": kinds["rejected"],
            "orphaned": sum(bool(outcome.orphans) for outcome in self.outcomes.values()),
            "refused an address": sum(
                "duplicate_email" in outcome.codes for outcome in self.outcomes.values()
            ),
            "ever parked": len(self._parked),
            "refused by the broker": sum(
                "internal_error" in outcome.codes for outcome in self.outcomes.values()
            ),
            "lost with their topic": sum(
                self.records.may_be_lost(s, self._cluster.generations) for s in self._all_missing()
            ),
        }

    def missing(self) -> list[str]:
        """The records without an outcome that should have one, or another one after a reset."""
        now = self._cluster.generations
        missing = [s for s in self._all_missing() if not self.records.may_be_lost(s, now)]
        return missing + self._to_judge_again()

    def _to_judge_again(self) -> list[str]:
        """What an operator was told is judged again, and has not been."""
        if not self._settings.resets:
            return []
        left = []
        for source, outcome in self.outcomes.items():
            sent = self.sent[source]
            generation = self._cluster.generations[self._names.input(sent.entity)]
            if sent.generation == generation and not sent.ambiguous:
                since = self.records.judged_since(sent)
                if sent.tick < since and outcome.tick <= since:
                    left.append(source)
        return left

    def _all_missing(self) -> list[str]:
        return [source for source in self.sent if source not in self.outcomes]

    def check(self) -> None:
        """Everything that is to hold when all is quiet. Raises Broken."""
        if missing := self.missing():
            raise Broken(f"without an outcome: {missing}")
        if self._settings.resets:
            return  # what was judged twice, and what relied on it, has a history of its own
        self._check_order()
        _demand(self.internals.disagreement(self._cluster))
        for source, outcome in self.outcomes.items():
            self._check_verdict(self.sent[source], outcome)
        if not self._settings.ordered:
            _demand(foreseen.unexpected(self.sent, self.outcomes))
        if self._settings.rules.tasks == 1:
            _demand(foreseen.out_of_turn(self.sent, self.outcomes))

    def check_released(self) -> None:
        """Nobody waits whose references are there, long before any grace is over."""
        queues: set[tuple[str, str, int]] = set()
        for source, sent in self.sent.items():
            if source not in self.outcomes:
                key = (sent.entity, sent.key, sent.partition)
                references = [("users", user) for user in sent.users]
                references += [("matches", match) for match in sent.matches]
                if key not in queues and all(named in self._changes for named in references):
                    raise Broken(f"{source} waits, and all is there")
                queues.add(key)

    def rows(self) -> tuple[dict[str, str], set[str]]:
        """The address of each user that is there, and the matches, as the accepted log has it."""
        users = {user: a for user, (_, a) in self._latest.items() if a is not None}
        matches = {
            key
            for (entity, key), all_ in self._changes.items()
            if entity == "matches" and max(all_)[1]
        }
        return users, matches

    def _check_order(self) -> None:
        """Records of one key in one partition: outcomes in their order."""
        before: dict[tuple[str, str, int], str] = {}
        for source, sent in self.sent.items():  # in the order in which they were sent
            if sent.kind == "invalid" or sent.ambiguous or source not in self.outcomes:
                continue
            if "internal_error" in self.outcomes[source].codes:  # rejected at once, as invalid ones
                continue
            key = (sent.entity, sent.key, sent.partition)
            if key in before:
                earlier, later = self.outcomes[before[key]], self.outcomes[source]
                swapped = earlier[:2] == later[:2] and earlier.offset > later.offset
                if earlier.tick > later.tick or swapped:
                    raise Broken(f"out of order: {before[key]} {earlier}, {source} {later}")
            before[key] = source

    # --- verdicts -----------------------------------------------------------------------------

    def _check_verdict(self, sent: Sent, outcome: Outcome) -> None:
        errors = set(outcome.codes) - {"orphaned_attendee"}
        if sent.kind == "invalid":
            if outcome.kind != "rejected" or errors != {sent.code}:
                raise Broken(f"{sent.source}: {outcome}, expected {sent.code}")
            return
        if errors == {"internal_error"} and self.records.is_refused(sent):
            return
        if not errors <= {"orphaned_user_id", "orphaned_match_id", "duplicate_email"}:
            raise Broken(f"{sent.source}: {outcome}, it has no such error")
        fatal = errors - {"orphaned_match_id"}
        if (outcome.kind == "rejected") != bool(fatal):
            raise Broken(f"{sent.source}: {outcome} in spite of {fatal}")
        if "duplicate_email" in errors:
            self._check_duplicate(sent, outcome)
        references = [("users", user) for user in sent.users]
        references += [("matches", match) for match in sent.matches]
        for entity, id_ in references:
            if (entity, id_) in outcome.orphans:
                self._check_orphan(sent, outcome, entity, id_)
            else:
                self._check_known(sent, outcome, entity, id_)

    def _check_duplicate(self, sent: Sent, outcome: Outcome) -> None:
        """Another must have had the address, or asked for it with success, while this waited.

        What was free, for all to see, before a record was sent is free for it.
        """
        assert sent.address is not None
        for tenure in self._tenures.get(sent.address, ()):
            if tenure.user != sent.key and tenure.since < outcome.tick and tenure.until > sent.tick:
                return
        # A settlement may have gone with the claims: until the grant has been settled once more,
        # its address is refused (docs/exactly-once.md, "Topics created anew"; seed 1074768).
        # And a user whose row the broker does not take had the address until that was known.
        refused = self.records.is_refused
        lost = any(s.address == sent.address and refused(s) for s in self.sent.values())
        if not lost and not self._cluster.generations[self._names.claims]:
            raise Broken(f"{sent.source} sent at {sent.tick}: {outcome}, {sent.address} was free")

    def _check_known(self, sent: Sent, outcome: Outcome, entity: str, id_: str) -> None:
        """Only accepted rows count as known, and none that the same decision has deleted.

        Users are judged before matches, and these before the rest, where they are judged as they
        are read.
        """
        changes = self._changes.get((entity, id_), ())
        if not any(there and tick <= outcome.tick for _, there, tick in changes):
            raise Broken(f"{sent.source}: {outcome}, but {id_} of {entity} was not known")
        at = (entity, id_, outcome.tick)
        if sent.source in self._parked or (entity, id_, sent.partition, at[2]) not in self._deleted:
            return
        if entity == "matches" and self._judged[at] > 1:
            return  # behind one that got its verdict last of all, when its frontier had been passed
        _, there = max((place, there) for place, there, tick in changes if tick == outcome.tick)
        if not there:
            raise Broken(f"{sent.source}: {outcome}, but {id_} of {entity} was deleted with it")

    def _check_orphan(self, sent: Sent, outcome: Outcome, entity: str, id_: str) -> None:
        """Definitive: the id must have been unknown when all that came in time had been judged.

        In time is what was appended before the end of the record's grace, in every partition of
        users, for the reference of a record that refers to matches in those of matches too. When
        the last of it was judged the accepted partition of the id had some end. As of that end,
        or of a later one up to the verdict, the latest row of the id must not have been there.
        """
        grace = self._settings.rules.grace
        assert sent.first_read is not None
        deadline = sent.first_read + grace
        if self._settings.clocks:
            # A restart may find the grace over: then what was there before the record counts.
            deadline = sent.moment
        elif outcome.moment < deadline:
            raise Broken(f"{sent.source}: {outcome} before its grace was over, at {deadline}")
        entities = INDEXED if sent.matches else ("users",)
        judged = 0
        for source, other in self.sent.items():
            if (
                other.moment < deadline
                and other.entity in entities
                and source in self.outcomes  # else it is gone with its topic
                and not other.ambiguous  # of two deletions, this one may have gone (seed 1126503)
            ):
                tick = self.outcomes[source].tick
                if tick >= outcome.tick:
                    raise Broken(f"{sent.source}: {outcome} before {source} was judged")
                judged = max(judged, tick)
        number = partition_for(id_.encode(), self._settings.rules.tasks)
        log = self._cluster.logs[Partition(self._names.accepted(entity), number)]
        end = bisect_left(log.ticks, judged)
        known = False
        for offset, there, tick in sorted(self._changes.get((entity, id_), ())):
            if offset < end:
                known = there
            elif tick <= outcome.tick and not there:
                return
        if known:
            raise Broken(f"{sent.source}: {outcome}, but {id_} of {entity} was there in time")


def _demand(complaint: str | None) -> None:
    if complaint is not None:
        raise Broken(complaint)


def _orphan(violation: _Found, sent: Sent) -> tuple[str, str]:
    if violation.field == "match_id":
        return "matches", sent.matches[0]
    return "users", sent.users[_USER_FIELDS[violation.field]]
