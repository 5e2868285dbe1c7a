"""The rows that the index does not show yet, against a model: what a worker knows of each key."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.core_kit import uid
from worker.core.decode import Decoded
from worker.core.keys import id_bytes
from worker.core.recent import RecentRows, Written
from worker.index.memory import MemoryIndex
from worker.stream import Partition

TOPICS = {"users": "accepted.users", "matches": "accepted.matches"}
PARTITIONS = 2
PLACES = [Partition(topic, number) for topic in TOPICS.values() for number in range(PARTITIONS)]
ADDRESSES = [bytes([n]) * 16 for n in range(3)]
NUMBERS = range(4)

numbers = st.sampled_from(NUMBERS)
entities = st.sampled_from(["users", "matches"])
addresses = st.sampled_from(ADDRESSES)

Value = bytes | None
"""The address of a user's row, empty of a match's; None for a deletion."""
Row = tuple[str, int, Value]


class Rows(RuleBasedStateMachine):
    """Rounds that are decided on, committed, noted and followed: each when it likes, in order.

    Other workers write rows of the same keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.index = MemoryIndex()
        self.recent = RecentRows(self.index)
        self.shown: dict[tuple[str, int], Value] = {}
        """What the index shows."""
        self.logs: dict[Partition, list[Row]] = {place: [] for place in PLACES}
        self.followed: dict[Partition, int] = dict.fromkeys(PLACES, 0)
        self.own: list[tuple[Row, tuple[Partition, int] | None]] = []
        """Rows of this worker that count, and where they are known to stand."""
        self.round: list[Row] = []
        self.decided: list[tuple[list[Written], list[Row]]] = []
        self.committed: list[tuple[list[Written], list[Row], list[tuple[int, int]]]] = []

    # --- what happens -------------------------------------------------------------------------

    @rule(entity=entities, number=numbers, address=addresses)
    def accept(self, entity: str, number: int, address: bytes) -> None:
        value = address if entity == "users" else b""
        row = Decoded(uid(number).encode(), b"{}", address=value or None)
        self.recent.accept(entity, row, len(self.round))
        self._note(entity, number, value)
        assert self.recent.take_fresh() == [id_of(number)]

    @rule(entity=entities, number=numbers)
    def delete(self, entity: str, number: int) -> None:
        self.recent.delete(entity, uid(number).encode(), len(self.round))
        self._note(entity, number, None)
        assert self.recent.take_fresh() == []

    @rule()
    def accept_what_nothing_refers_to(self) -> None:
        before = self._remembered()
        self.recent.accept("events", Decoded(uid(1).encode(), b"{}"), len(self.round))
        assert self._remembered() == before

    @precondition(lambda self: self.round)
    @rule()
    def end_the_round(self) -> None:
        self.decided.append((self.recent.take_round(), self.round))
        self.round = []

    @precondition(lambda self: self.decided)
    @rule()
    def commit(self) -> None:
        written, rows = self.decided.pop(0)
        self.committed.append((written, rows, [self._append(row) for row in rows]))

    @rule(entity=entities, number=numbers, address=addresses, there=st.booleans())
    def another_worker_commits(self, entity: str, number: int, address: bytes, there: bool) -> None:
        value = (address if entity == "users" else b"") if there else None
        self._append((entity, number, value))

    @precondition(lambda self: self.committed)
    @rule()
    def note_where_it_stands(self) -> None:
        written, rows, places = self.committed.pop(0)
        self.recent.locate(written, places, TOPICS)
        first = next(n for n, (_, at) in enumerate(self.own) if at is None)
        for n, (row, (number, offset)) in enumerate(zip(rows, places, strict=True), first):
            assert self.own[n][0] is row
            self.own[n] = row, (Partition(TOPICS[row[0]], number), offset)

    @rule(place=st.sampled_from(PLACES), most=st.integers(1, 5))
    def follow(self, place: Partition, most: int) -> None:
        for entity, number, value in self.logs[place][self.followed[place] :][:most]:
            self.shown[entity, number] = value
            self._apply(entity, number, value)
            self.followed[place] += 1

    @rule()
    def note_what_is_followed(self) -> None:
        self.recent.followed(dict(self.followed))
        self.own = [
            (row, at) for row, at in self.own if at is None or at[1] >= self.followed[at[0]]
        ]

    # --- what must hold -----------------------------------------------------------------------

    @invariant()
    def look_ups_are_those_of_the_index_with_the_own_rows_over_it(self) -> None:
        latest = self.shown | {(entity, n): value for (entity, n, value), _ in self.own}
        for n in NUMBERS:
            assert self.recent.user(id_of(n)) == (latest.get(("users", n)) is not None)
            assert self.recent.match(id_of(n)) == (latest.get(("matches", n)) is not None)
            for address in ADDRESSES:
                others = [m for m in NUMBERS if m != n and latest.get(("users", m)) == address]
                assert self.recent.taken(address, id_of(n)) == bool(others)

    @invariant()
    def no_more_is_remembered_than_counts(self) -> None:
        rows = {(entity, n): value for (entity, n, value), _ in self.own}
        assert self._remembered() == len(rows)
        holders = sum(map(len, self.recent._holders.values()))
        assert holders == sum(bool(value) for value in rows.values())

    # --- inside -------------------------------------------------------------------------------

    def _remembered(self) -> int:
        return len(self.recent._users) + len(self.recent._matches)

    def _note(self, entity: str, number: int, value: Value) -> None:
        row = (entity, number, value)
        self.round.append(row)
        self.own.append((row, None))

    def _append(self, row: Row) -> tuple[int, int]:
        number = row[1] % PARTITIONS
        log = self.logs[Partition(TOPICS[row[0]], number)]
        log.append(row)
        return number, len(log) - 1

    def _apply(self, entity: Any, number: int, value: Value) -> None:
        if entity == "users":
            self.index._user(id_of(number), value)
        else:
            self.index._match(id_of(number), there=value is not None)


def id_of(number: int) -> bytes:
    return id_bytes(uid(number))


TestRows = Rows.TestCase
TestRows.settings = settings(stateful_step_count=60, deadline=None)
