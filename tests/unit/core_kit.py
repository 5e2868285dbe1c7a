"""Helpers of the tests of the pure core: records, and a stream in memory that tasks are run on.

`World` does for the core what broker and worker do: it keeps the logs, carries decisions out and
follows the accepted rows into a MemoryIndex. Its clock stands until a test moves it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from schemas import ENTITIES, Kind
from worker.core.addresses import owner_of
from worker.core.checkpoint import Checkpoint
from worker.core.frontier import Frontier
from worker.core.internal import read_parked, read_progress, read_reservation
from worker.core.keys import read_key
from worker.core.known import IndexDelta, address_digest
from worker.core.moments import Moment
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER, Tally
from worker.core.parked import Envelope
from worker.core.recent import RecentRows
from worker.core.restoring import SavedState
from worker.core.round import Round, TaskBatch
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import TASK_INPUTS, Names
from worker.index.memory import MemoryIndex
from worker.stream import Headers, Message, OffsetRange, Partition, ProducerRecord

NOW = 1_767_225_600_000  # 2026-01-01T00:00:00Z
GRACE = 30_000
HOLD = 10_000
INDEXED = ("users", "matches")
FIRST_OFFSET = 3
STEP = 2  # offsets may have gaps


class Decision(NamedTuple):
    """What one task says, and what it has done."""

    outputs: list[ProducerRecord]
    tally: Tally


Crash = Literal["before commit", "after commit"]


def uid(number: int) -> str:
    """A UUID v4 of its own for each number."""
    return f"{number:08x}-0000-4000-8000-00000000abcd"


def good(entity: str, number: int = 1, **changes: Any) -> dict[str, Any]:
    """A good record with the required fields only; `changes` over it, None takes a field away.

    Ids are of the number; references are to user 1, user 2 and match 1.
    """
    record: dict[str, Any] = {}
    for column in ENTITIES[entity].columns:
        if not column.required:
            continue
        match column.kind:
            case Kind.UUID:
                value: Any = uid(1 if column.refers_to else number)
            case Kind.TIMESTAMP:
                value = "2024-01-15T10:00:00Z"
            case Kind.EMAIL:
                value = f"user{number}@example.org"
            case Kind.ENUM:
                value = column.values[0]
            case Kind.INTEGER:
                value = number
            case Kind.RATING:
                value = 0.5
            case _:
                value = "text"
        record[column.name] = value
    for other in ("buddy_id", "learner_id"):
        if other in record:
            record[other] = uid(2)
    record.update(changes)
    return {name: value for name, value in record.items() if value is not None}


def to_json(record: object) -> bytes:
    """A record as compact JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def saved(
    rules: TaskSettings,
    number: int,
    progress: Mapping[bytes, bytes],
    parked: Mapping[bytes, bytes],
    granted: Mapping[bytes, bytes],
) -> SavedState:
    """What a task is restored from, as its three tables hold it: what is unreadable is skipped."""
    names, tasks = rules.names, rules.tasks
    return SavedState(
        next((read_progress(*row, number) for row in progress.items()), None),
        tuple(filter(None, (read_parked(*row, number, names) for row in parked.items()))),
        tuple(filter(None, (read_reservation(*row, number, tasks) for row in granted.items()))),
    )


class Outcome(NamedTuple):
    """What became of one record."""

    kind: Literal["accepted", "deleted", "rejected"]
    codes: tuple[str, ...]
    fields: tuple[str, ...]
    message: ProducerRecord


class World:
    """All logs in memory, and one worker that runs every task."""

    def __init__(
        self,
        partitions: int = 1,
        *,
        now: int = NOW,
        grace: int = GRACE,
        persist_after: int = HOLD,
        most_in_memory: int = 5_000,
    ) -> None:
        self.now = now
        """The steady clock; the broker's too."""
        self.stepped = 0
        """How far the worker's wall clock is ahead of it."""
        self.names = Names()
        self.rules = TaskSettings(
            names=self.names,
            tasks=partitions,
            grace=grace,
            persist_after=persist_after,
            most_in_memory=most_in_memory,
        )
        self.count = partitions
        self.inputs: dict[Partition, list[Message]] = {
            Partition(self.names.input(name), number): []
            for name in TASK_INPUTS
            for number in range(partitions)
        }
        self.committed: list[ProducerRecord] = []
        self.accepted: dict[Partition, list[ProducerRecord]] = {}
        self.parked: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
        self.granted: list[dict[bytes, bytes]] = [{} for _ in range(partitions)]
        self.progress: list[list[bytes]] = [[] for _ in range(partitions)]
        self.index = MemoryIndex()
        self.commit_refusals: Mapping[tuple[str, int], int] = {}
        self.identities = dict.fromkeys(TASK_INPUTS, "one")
        self.parked_lost: dict[str, int] = {}
        self.surplus = 0
        """What a task that is restored is to find out about the copies of its parked records."""
        self.missing_reservations = 0
        self.progress_was_lost = False
        """Whether copies are written again, as their records are read again."""
        self.replaced: set[str] = set()
        """The inputs that hold other records than the copies of a task without a checkpoint."""
        self.gone: set[str] = set()
        """The coordinates of records whose topic was created anew."""
        self.first_read: dict[str, int] = {}
        self._truncated_at: dict[Partition, int] = {}
        """Where inputs were truncated whose tasks have committed nothing since."""
        self._followed: dict[Partition, int] = {}
        self._pending: list[tuple[list[bytes], list[bytes]]] = [([], []) for _ in range(partitions)]
        self._frontiers: list[Frontier] = []
        self._recent: dict[int, tuple[Task, RecentRows]] = {}
        self.tasks = [self.restored(number) for number in range(partitions)]

    # --- input --------------------------------------------------------------------------------

    def send(
        self,
        entity: str,
        record: Mapping[str, Any] | bytes | None,
        key: str | bytes | None = None,
        *,
        partition: int | None = None,
        headers: Headers = (),
        timestamp: int | None = None,
        appended: bool = True,
    ) -> str:
        """Append one record, by default where its key belongs; its coordinate."""
        value = record if record is None or isinstance(record, bytes) else to_json(record)
        key = key.encode() if isinstance(key, str) else key
        if partition is None:
            partition = crc32(_key(entity, record, key)) % self.count
        place = Partition(self.names.input(entity), partition)
        moment = self.now if timestamp is None else timestamp
        offset = self._append(place, moment, key, value, headers, appended=appended)
        return f"{place.topic}/{partition}/{offset}"

    def delete(self, entity: str, key: str, *, partition: int | None = None) -> str:
        """Append a deletion."""
        return self.send(entity, None, key, partition=partition)

    def ends(self, names: Iterable[str]) -> dict[Partition, int]:
        """Where the inputs end."""
        topics = {self.names.input(name) for name in names}
        return {
            place: FIRST_OFFSET + STEP * len(log)
            for place, log in self.inputs.items()
            if place.topic in topics
        }

    @property
    def moment(self) -> Moment:
        """What the worker's clocks say."""
        return Moment(self.now + self.stepped, self.now)

    def create_anew(self, name: str) -> None:
        """The topic of an input goes, with all that is in it; its offsets begin again."""
        topic = self.names.input(name)
        for number in range(self.count):
            log = self.inputs[Partition(topic, number)]
            self.gone |= {f"{topic}/{number}/{message.offset}" for message in log}
            log.clear()
        self.identities[name] += "'"
        self.tasks = [self.restored(number) for number in range(self.count)]

    def truncate(self, name: str, records: int, partition: int = 0) -> None:
        """The topic of an input loses its last records; its task is taken over."""
        topic = self.names.input(name)
        log = self.inputs[Partition(topic, partition)]
        lost = log[len(log) - records :]
        self.gone |= {f"{topic}/{partition}/{message.offset}" for message in lost}
        del log[len(log) - records :]
        end = FIRST_OFFSET + STEP * len(log)
        place = Partition(topic, partition)
        self._truncated_at[place] = min(end, self._truncated_at.get(place, end))
        self.tasks[partition] = self.restored(partition)

    # --- rounds -------------------------------------------------------------------------------

    def round(
        self,
        most: int | None = None,
        *,
        only: Iterable[int] | None = None,
        crash: Mapping[int, Crash] | None = None,
        lag: bool = False,
    ) -> dict[int, Decision]:
        """One round of the worker: follow, tend the frontiers, judge, commit.

        `most` records are read of each input. A task that crashes is restored from what was
        committed. With `lag` nothing is followed, but for a task that has to be synchronised.
        """
        if not lag:
            self.follow()
        self._tend()
        decisions = {}
        for number in range(self.count) if only is None else sorted(set(only)):
            task = self.tasks[number]
            messages, positions = self._read(task, most)
            # Each is a worker of its own.
            own, batches = {number: task}, {number: TaskBatch(messages, positions)}
            one = Round(own, batches, self.recent(number))
            synchronised = one.needs_current_index(self.moment)
            if synchronised:
                self.follow()
                self.recent(number)
            delta, self._pending[number] = IndexDelta(*self._pending[number]), ([], [])
            decided = one.decide(delta, self.moment, synchronised=synchronised)
            decisions[number] = Decision(decided.outputs, decided.tallies[number])
        for number, decision in decisions.items():
            how = (crash or {}).get(number)
            if how != "before commit":
                self._commit(number, decision)
            if how is not None:
                self.tasks[number] = self.restored(number)
        return decisions

    def settle(self) -> None:
        """Rounds until all is read and nothing happens any more; the clock stands."""
        for _ in range(10_000):
            if not any(d.outputs for d in self.round().values()) and self._is_read():
                return
        raise AssertionError("it never comes to rest")

    def finish(self) -> None:
        """Let the grace of everything end; whatever is parked then gets its verdict."""
        for _ in range(4):  # two levels of references, and a crash may have put off a frontier
            self.settle()
            self.now += self.rules.grace + 1
        self.settle()
        assert [len(task.parking) for task in self.tasks] == [0] * self.count
        assert [len(task.addresses) for task in self.tasks] == [0] * self.count
        assert self.parked == self.granted == [{}] * self.count

    def follow(self) -> None:
        """Read the accepted topics into the index, and note what came to be known."""
        fresh: dict[str, list[bytes]] = {"users": [], "matches": []}
        for place, log in self.accepted.items():
            entity = self.names.entity_of(place.topic)
            if entity not in INDEXED:
                continue
            for message in log[self._followed.get(place, 0) :]:
                new = self.index.apply_row(
                    entity,  # type: ignore[arg-type]
                    message.key,
                    message.value,
                )
                if new and message.key is not None:
                    fresh[entity].append(bytes.fromhex(message.key.decode().replace("-", "")))
            self._followed[place] = len(log)
        for users, matches in self._pending:
            users.extend(filter(self.index.user, fresh["users"]))
            matches.extend(filter(self.index.match, fresh["matches"]))

    def recent(self, number: int) -> RecentRows:
        """The rows of the worker of a task: those since it was restored that are not followed."""
        task = self.tasks[number]
        if number not in self._recent or self._recent[number][0] is not task:
            self._recent[number] = task, RecentRows(self.index)
        recent = self._recent[number][1]
        topics = map(self.names.accepted, INDEXED)
        places = [Partition(topic, q) for topic in topics for q in range(self.count)]
        recent.followed({place: self._followed.get(place, 0) for place in places})
        return recent

    def restored(self, number: int, **starts: int) -> Task:
        """The task as the log says that it stands; `starts` where inputs begin meanwhile."""
        task = Task(number, self.rules)
        task.commit_refusals = self.commit_refusals
        progress = {str(number).encode(): value for value in self.progress[number]}
        parked, granted = self.parked[number], self.granted[number]
        state = saved(self.rules, number, progress, parked, granted)
        task.restore(msgspec.structs.replace(state, replaced=self.replaced), self.moment)
        self.missed = task.compare_topics(self.identities, self.spans(number, **starts))
        assert self.missed.parked == self.parked_lost
        assert self.missed.surplus == self.surplus
        assert self.missed.reservations == self.missing_reservations
        return task

    def spans(self, number: int, **starts: int) -> dict[str, OffsetRange]:
        """What the inputs of a task hold; `starts` where inputs begin meanwhile.

        A task that has committed nothing since an input was truncated finds the truncation again.
        """
        found = {}
        for name in TASK_INPUTS:
            place = Partition(self.names.input(name), number)
            end = self._truncated_at.get(place, FIRST_OFFSET + STEP * len(self.inputs[place]))
            found[name] = OffsetRange(starts.get(name, FIRST_OFFSET), end)
        return found

    # --- results ------------------------------------------------------------------------------

    def outcomes(self) -> dict[str, list[Outcome]]:
        """Every record with what was published about it, in the order of publication."""
        found: dict[str, list[Outcome]] = {
            f"{place.topic}/{place.number}/{message.offset}": []
            for place, log in self.inputs.items()
            for message in log
            if self.names.entity_of(place.topic) in ENTITIES
        }
        found |= {source: [] for source in self.gone if source not in found}
        for message in self.committed:
            source = dict(message.headers).get(SOURCE_HEADER)
            if source is not None:
                found[source.decode()].append(outcome_of(message))
        return found

    def outcome(self, coordinate: str) -> Outcome | None:
        """The one outcome of a record, None while it has none."""
        found = self.outcomes()[coordinate]
        assert len(found) < 2
        return found[0] if found else None

    def kind(self, coordinate: str) -> str:
        """accepted, deleted, rejected or open."""
        outcome = self.outcome(coordinate)
        return "open" if outcome is None else outcome.kind

    def judged(self, number: int = 0) -> dict[str, int]:
        """How far a task says it has judged, in records from the start."""
        progress = msgspec.json.decode(self.progress[number][-1], type=Checkpoint)
        return {e: (at - FIRST_OFFSET) // STEP for e, at in progress.judged.items()}

    def row(self, entity: str, key: str) -> dict[str, Any] | None:
        """The latest accepted row of a key."""
        latest: dict[str, Any] | None = None
        for message in self.committed:
            if message.topic == self.names.accepted(entity) and message.key == key.encode():
                latest = None if message.value is None else json.loads(message.value)
        return latest

    # --- inside -------------------------------------------------------------------------------

    def _append(
        self,
        place: Partition,
        moment: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        appended: bool = True,
    ) -> int:
        log = self.inputs[place]
        offset = FIRST_OFFSET + STEP * len(log)
        log.append(Message(*place, offset, moment, key, value, headers, appended))
        return offset

    def _read(self, task: Task, most: int | None) -> tuple[list[Message], dict[str, int]]:
        messages, positions = [], {}
        for name in reversed(TASK_INPUTS):  # a broker promises no order across inputs
            log = self.inputs[Partition(self.names.input(name), task.number)]
            start = (task.reading.next[name] - FIRST_OFFSET) // STEP
            batch = log[start:] if most is None else log[start : start + most]
            messages += batch
            positions[name] = FIRST_OFFSET + STEP * (start + len(batch))
        return messages, positions

    def _is_read(self) -> bool:
        return all(
            self.tasks[place.number].reading.next[self.names.entity_of(place.topic)] >= end
            for place, end in self.ends(TASK_INPUTS).items()
        )

    def _commit(self, number: int, decision: Decision) -> None:
        places = []
        for message in decision.outputs:
            places.append(self._place(message))
            self.committed.append(message)
            name = self.names.entity_of(message.topic)
            assert message.key is not None or ".rejected." in message.topic
            if message.topic == self.names.parked:
                if message.value is not None:
                    entity, _, offset = _text(message.key).split("/")
                    source = f"{self.names.input(entity)}/{number}/{offset}"
                    self.first_read.setdefault(source, self.now)
                    again = msgspec.msgpack.decode(message.value, type=Envelope).attempt > 0
                    again |= self.progress_was_lost
                    assert again or message.key not in self.parked[number]
                # A record is struck out once: `del` fails where it is not there.
                self._keep(self.parked, number, message)
            elif message.topic == self.names.granted:
                self._keep(self.granted, number, message)
            elif message.topic == self.names.progress:
                assert (message.partition, message.key) == (number, str(number).encode())
                assert message.value is not None
                self.progress[number].append(message.value)
                self._truncated_at = {
                    p: end for p, end in self._truncated_at.items() if p.number != number
                }
                held = msgspec.json.decode(message.value, type=Checkpoint).in_memory
                for entity, by_time in held.items():
                    for first_read, offsets in by_time.items():
                        for at in offsets:
                            source = f"{self.names.input(entity)}/{number}/{at}"
                            self.first_read.setdefault(source, first_read)
            elif name in TASK_INPUTS and message.partition is not None:  # a claim or a grant
                place = Partition(message.topic, message.partition)
                self._append(place, self.now, message.key, message.value, message.headers)
            elif ".accepted." in message.topic:
                assert message.partition is None
                self.accepted.setdefault(self._of_accepted(message), []).append(message)
        recent = self.recent(number)
        topics = {entity: self.names.accepted(entity) for entity in INDEXED}
        recent.locate(recent.take_round(), places, topics)

    def _of_accepted(self, message: ProducerRecord) -> Partition:
        return Partition(message.topic, crc32(message.key or b"") % self.count)

    def _place(self, message: ProducerRecord) -> tuple[int, int]:
        """Where a message comes to stand; of what is not accepted nobody asks."""
        if ".accepted." not in message.topic:
            return -1, -1
        place = self._of_accepted(message)
        return place.number, len(self.accepted.get(place, []))

    def _keep(self, tables: list[dict[bytes, bytes]], number: int, message: ProducerRecord) -> None:
        assert message.partition == number
        assert message.key is not None
        if message.value is None:
            del tables[number][message.key]
        else:
            tables[number][message.key] = message.value

    def _tend(self) -> None:
        due = [task for task in self.tasks if task.end_grace(self.moment)]
        if due:
            users = Frontier(self.ends(["users"]), covers_matches=False)
            matches = Frontier(self.ends(INDEXED), covers_matches=True)
            for task in due:
                task.parking.await_frontiers(users, matches)
            self._frontiers += [users, matches]
        judged = self._judged_offsets()
        for frontier in self._frontiers:
            frontier.advance(judged)
            if frontier.needs_accepted_ends:
                frontier.note_accepted_ends({p: len(log) for p, log in self._indexed()})
            frontier.follow(self._followed)
        self._frontiers = [frontier for frontier in self._frontiers if not frontier.passed]

    def _indexed(self) -> Sequence[tuple[Partition, list[ProducerRecord]]]:
        topics = {self.names.accepted(entity) for entity in INDEXED}
        return [(p, log) for p, log in self.accepted.items() if p.topic in topics]

    def _judged_offsets(self) -> dict[Partition, int]:
        found = {}
        for number, progress in enumerate(self.progress):
            if progress:
                judged = msgspec.json.decode(progress[-1], type=Checkpoint).judged
                for entity, offset in judged.items():
                    found[Partition(self.names.input(entity), number)] = offset
        return found


def _key(entity: str, record: Mapping[str, Any] | bytes | None, key: bytes | None) -> bytes:
    if key is not None:
        return read_key(ENTITIES[entity], key) or key
    if isinstance(record, Mapping):
        return ":".join(str(record.get(name)).lower() for name in ENTITIES[entity].key).encode()
    return b""


def _text(key: bytes | None) -> str:
    return (key or b"").decode()


def outcome_of(message: ProducerRecord) -> Outcome:
    """What a message says of the record that its header names."""
    if ".rejected." in message.topic:
        assert message.value is not None
        violations = json.loads(message.value)["violations"]
        codes = tuple(v["code"] for v in violations)
        return Outcome("rejected", codes, tuple(v["field"] for v in violations), message)
    if message.value is None:
        return Outcome("deleted", (), (), message)
    warnings = dict(message.headers).get(WARNINGS_HEADER, b"").decode()
    return Outcome("accepted", tuple(filter(None, warnings.split(","))), (), message)


def owned(task: int, tasks: int, which: int = 0) -> str:
    """An address that this task owns; a different one for each `which`."""
    found = (f"a{n}@example.org" for n in count())
    own = (e for e in found if owner_of(address_digest(e), tasks) == task)
    return [next(own) for _ in range(which + 1)][-1]
