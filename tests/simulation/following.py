"""The follower and the barriers of a worker: worker/engine/follower.py and verdicts.py as steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas import ENTITIES
from tests.simulation.dice import Dice
from tests.simulation.settings import Settings
from tests.simulation.threads import Outage, Step
from tests.simulation.world import Log, World
from worker.brokers.contract import Message, Partition
from worker.core.barrier import Barrier, Progress
from worker.core.keys import id_bytes
from worker.core.moments import Moment
from worker.core.outbox import Rules
from worker.core.task import Task
from worker.index.contract import Learned
from worker.index.memory import MemoryIndex
from worker.index.rows import indexed_entity

INDEXED: Final = ("users", "matches")
PATIENCE: Final = 30_000
_NOTE_EVERY: Final = 200
_read_progress = msgspec.json.Decoder(Progress).decode


class Saved:
    """What a worker has on its disk: the index, and where it goes on."""

    def __init__(self) -> None:
        self.index = MemoryIndex()
        self.positions: dict[Log, int] = {}


def identity(generations: Mapping[str, int], topic: str) -> str:
    """The identity of a topic, as the broker tells it."""
    return f"id-{generations.get(topic, 0)}"


def ends(dice: Dice, logs: Iterable[Log], *, uncommitted: bool) -> Step[dict[Log, int]]:
    """Where the logs end; each is asked at a moment of its own."""
    found = {}
    for log in logs:
        if dice.stop():
            yield None
        found[log] = log.end if uncommitted else log.stable
    return found


class Follower:
    """Reads accepted rows into the index of one worker, and the progress of all tasks."""

    def __init__(
        self, world: World, settings: Settings, saved: Saved, generations: Mapping[str, int]
    ) -> None:
        rules = settings.rules
        self._generations = generations
        self._world = world
        self._dice = settings.dice
        self._lag = settings.lag
        self._names = rules.names
        self._saved = saved
        self.index = saved.index
        self.judged: dict[Partition, int] = {}
        self.news = False
        self.ready = False
        numbers = range(rules.tasks)
        topics = [self._names.accepted(entity) for entity in INDEXED]
        self.accepted = [world.log(topic, q) for topic in topics for q in numbers]
        inputs = [(entity, self._names.inputs(entity)) for entity in ENTITIES]
        self.progress = {
            world.log(self._names.progress, q): {e: Partition(topic, q) for e, topic in inputs}
            for q in numbers
        }
        self._followed = {log: saved.positions.get(log, 0) for log in self.accepted}
        self._followed.update(dict.fromkeys(self.progress, 0))
        self.version = 0
        """Counts what has been followed."""
        self._at: dict[Partition, int] | None = None
        self._looked = -1
        self._learned = Learned([], [])

    def run(self) -> Step[None]:
        """Follow for ever; `ready` once all is read that there was, open transactions included."""
        until = yield from ends(self._dice, self._followed, uncommitted=True)
        while True:
            self.ready = self.ready or not self.lacks(until)
            yield self._can_read
            yield from self._follow()

    def reach(self, until: Mapping[Log, int]) -> Step[None]:
        """Wait until all this is followed. Raises Outage if that takes too long."""
        limit = self._world.now + PATIENCE
        if self.lacks(until):
            yield lambda: not self.lacks(until) or self._world.now >= limit
        if self.lacks(until):
            raise Outage("followed nothing for too long")

    def lacks(self, until: Mapping[Log, int]) -> bool:
        """Whether something of this has not been followed."""
        followed = self._followed
        return any(followed[log] < end for log, end in until.items())

    def followed(self) -> dict[Partition, int]:
        """How far the accepted topics have been followed."""
        if self._at is None:
            self._at = {log.place: self._followed[log] for log in self.accepted}
        return self._at

    def learned(self) -> Learned:
        """The ids that came to be known since the last call."""
        learned, self._learned = self._learned, Learned([], [])
        return learned

    # --- inside -------------------------------------------------------------------------------

    def _can_read(self) -> bool:
        if self._looked == self._world.shown:  # nothing has come since nothing was found
            return False
        for log, position in self._followed.items():
            if position < log.stable:
                return True
        self._looked = self._world.shown
        return False

    def _follow(self) -> Step[None]:
        dice, followed = self._dice, dict(self._followed)
        logs = [log for log, position in followed.items() if position < log.stable]
        messages: list[Message] = []
        rows: list[Message] = []
        progress: list[tuple[dict[str, Partition], Message]] = []
        if dice.fineness and len(logs) > 1:
            dice.shuffle(logs)
            logs = logs[: 1 + dice.below(len(logs))]
        if dice.fineness and self._lag:
            logs = [log for log in logs if log in self.progress or dice.random() >= self._lag]
        for log in logs:
            limit = 1 + dice.below(8) if dice.fineness else 1_000_000
            some, followed[log] = log.read(followed[log], limit)
            messages += some
            places = self.progress.get(log)
            if places is None:
                rows += some
            elif some:
                progress.append((places, some[-1]))
        if rows:
            learned = self._apply(rows)
            self._saved.positions = {log: followed[log] for log in self.accepted}
            if dice.stop():
                yield None
            self._learned.users.extend(learned.users)
            self._learned.matches.extend(learned.matches)
        self._followed = followed
        self._at = None
        for places, latest in progress:
            assert latest.value is not None
            self._note_progress(places, latest.value)
        self.news = True
        self.version += 1
        if self._world.trace:
            seen = " ".join(
                f"{m.topic.partition('.')[2]}/{m.partition}@{m.offset}" for m in messages
            )
            self._world.trace(f"follows {seen}")

    def _note_progress(self, places: Mapping[str, Partition], value: bytes) -> None:
        progress = _read_progress(value)
        for entity, offset in progress.judged.items():
            place = places[entity]
            same = progress.topics[entity] == identity(self._generations, place.topic)
            self.judged[place] = offset if same else -1

    def _apply(self, rows: Sequence[Message]) -> Learned:
        """As the store does: the latest row of each key; ids unknown before and known after."""
        latest = {(m.topic, m.key): m for m in rows}
        learned = Learned([], [])
        for message in latest.values():
            entity = indexed_entity(message.topic)
            if self.index.apply_row(entity, message.key, message.value):
                assert message.key is not None
                ids = learned.users if entity == "users" else learned.matches
                ids.append(id_bytes(message.key.decode()))
        return learned


class Barriers:
    """The barriers that the tasks of one worker wait for."""

    def __init__(
        self,
        world: World,
        dice: Dice,
        rules: Rules,
        follower: Follower,
        moment: Callable[[], Moment],
    ) -> None:
        self._world = world
        self._moment = moment
        self._dice = dice
        self._follower = follower
        self._noted = 0
        self._tended = -1
        self.open: list[Barrier] = []
        topics = [rules.names.inputs(entity) for entity in INDEXED]
        self._inputs = [world.log(topic, q) for topic in topics for q in range(rules.tasks)]
        self._users = topics[0]

    def tend(self, tasks: Sequence[Task]) -> Step[None]:
        """Note barriers for overdue records, and move those that are noted forward."""
        now = self._world.now
        overdue = [task for task in tasks if task.overdue(self._moment())]
        if overdue and now - self._noted >= _NOTE_EVERY:
            self._noted = now
            spans = yield from ends(self._dice, self._inputs, uncommitted=False)
            noted = {log.place: end for log, end in spans.items()}
            users = {place: end for place, end in noted.items() if place.topic == self._users}
            barriers = (
                Barrier(users, covers_matches=False),
                Barrier(noted, covers_matches=True),
            )
            for task in overdue:
                task.await_barriers(*barriers)
            self.open += barriers
            self._tended = -1
            if self._world.trace:
                self._world.trace(f"notes barriers at {list(noted.values())}")
        version = self._follower.version
        if version == self._tended or not self.open:  # as before: they would stay as they are
            return
        for barrier in self.open:
            barrier.blocked_by(self._follower.judged)
            if barrier.needs_outcomes:
                spans = yield from ends(self._dice, self._follower.accepted, uncommitted=True)
                barrier.note_outcomes({log.place: end for log, end in spans.items()})
            barrier.follow(self._follower.followed())
        self.open = [barrier for barrier in self.open if not barrier.passed]
        self._tended = version
