"""The index is a function of each key's latest row, however the topics were read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rows_kit import canonical, match, user, uuid
from worker.brokers.partitioner import partition_for
from worker.core.known import IndexDelta, Known, address_digest
from worker.index import store as index_store
from worker.index.memory import MemoryIndex
from worker.index.rows import indexed_entity, latest_rows
from worker.index.store import IndexStore
from worker.stream import Message, Partition

# So few that they collide all the time.
PARTITIONS = 3
USERS = [UUID(uuid(n)) for n in range(5)]
MATCHES = [UUID(uuid(n)) for n in range(7, 10)]
ADDRESSES = ["a@x.org", "b@x.org", "ö@x.org"]
UNREADABLE = [
    b"",
    b"{",
    b"[]",
    b'{"id":1}',
    b'{"email":7}',
    b"\xff",
    b'{"email":"\xff"}',
    b"[" * 9999,
]
STRANGER = UUID(int=1)


class Op(NamedTuple):
    """One message: a row, a deletion (None) or something unreadable (bytes)."""

    topic: str
    id: UUID
    row: str | bytes | None

    def message(self, offset: int) -> Message:
        value: bytes | None
        key = str(self.id).encode()
        if not isinstance(self.row, str):
            value = self.row
        elif self.topic.endswith("users"):
            value = user_row(self.id, self.row)
        else:
            _, value = match(MATCHES.index(self.id) + 7, 1, 2)
        return Message(self.topic, partition_for(key, PARTITIONS), offset, 0, key, value)


def user_row(id_: UUID, email: str) -> bytes:
    """The canonical row of a user."""
    return canonical("users", json.loads(user(0)[1]) | {"id": str(id_), "email": email})[1]


user_ops = st.builds(
    Op,
    st.just("p.accepted.users"),
    st.sampled_from(USERS),
    st.sampled_from([*ADDRESSES, *ADDRESSES, None, *UNREADABLE[:4]]),
)
match_ops = st.builds(
    Op,
    st.just("p.accepted.matches"),
    st.sampled_from(MATCHES),
    st.sampled_from(["row", "row", None, b"nonsense"]),
)
histories = st.lists(st.one_of(user_ops, user_ops, match_ops), max_size=40)

Logs = dict[Partition, list[Message]]


def logs_of(history: list[Op]) -> Logs:
    logs: Logs = {
        Partition(topic, number): []
        for topic in ("p.accepted.users", "p.accepted.matches")
        for number in range(PARTITIONS)
    }
    for op in history:
        partition = Partition(op.topic, op.message(0).partition)
        logs[partition].append(op.message(len(logs[partition])))
    return logs


class Model:
    """The latest rows in plain dicts; it does not share a line with the index."""

    def __init__(self, history: list[Op]) -> None:
        self.users: dict[UUID, str] = {}
        self.matches: set[UUID] = set()
        for topic, id_, row in history:
            if isinstance(row, bytes):
                continue
            if topic.endswith("matches"):
                (self.matches.discard if row is None else self.matches.add)(id_)
            elif row is None:
                self.users.pop(id_, None)
            else:
                self.users[id_] = row

    def agrees(self, known: Known) -> None:
        for id_ in [*USERS, *MATCHES, STRANGER]:
            assert known.user(id_.bytes) == (id_ in self.users)
            assert known.match(id_.bytes) == (id_ in self.matches)
        for address in [*ADDRESSES, "nobody@x.org"]:
            digest = address_digest(address)
            holders = {user.bytes for user, held in self.users.items() if held == address}
            assert sorted(known.holders(digest)) == sorted(holders)
            for id_ in [*USERS, STRANGER]:
                assert known.taken(digest, id_.bytes) == bool(holders - {id_.bytes})

    def counts(self) -> dict[str, int]:
        return {
            "users": len(self.users),
            "matches": len(self.matches),
            "addresses": len(set(self.users.values())),
        }


def draw_reading(data: st.DataObject, logs: Logs) -> list[list[Message]]:
    """The logs read in any interleaving, in any batches, some parts of them several times."""
    positions = dict.fromkeys(logs, 0)
    batches: list[list[Message]] = [[]]
    rewinds = data.draw(st.integers(0, 3), label="rewinds")
    while unread := [p for p in logs if positions[p] < len(logs[p])]:
        partition = data.draw(st.sampled_from(unread))
        start = positions[partition]
        end = data.draw(st.integers(start + 1, len(logs[partition])))
        batches[-1].extend(logs[partition][start:end])
        positions[partition] = end
        if rewinds and data.draw(st.booleans()):
            rewinds -= 1
            positions[partition] = data.draw(st.integers(0, end))
        if data.draw(st.booleans()):
            batches.append([])
    return batches


@given(history=histories, data=st.data())
def test_any_reading_gives_the_index_of_the_latest_rows(
    history: list[Op], data: st.DataObject
) -> None:
    logs = logs_of(history)
    model = Model(history)
    memory = MemoryIndex()
    ends = {partition: len(log) for partition, log in logs.items()}
    seen = data.draw(st.sampled_from([1, 3, 100]), label="ids remembered")
    with tempfile.TemporaryDirectory() as folder, patch.object(index_store, "_MOST_SEEN", seen):
        # Smaller than what it must hold: growth is part of every example.
        store = IndexStore(Path(folder) / "index", map_size=40_960)
        store.open()
        for batch in draw_reading(data, logs):
            before = known_ids(store)
            learned = store.apply(batch, ends)
            after = known_ids(store)
            looks_up_alike(store)
            assert sorted(learned.users) == sorted(set(after.users) - set(before.users))
            assert sorted(learned.matches) == sorted(set(after.matches) - set(before.matches))
            for message in batch:
                memory.apply_row(indexed_entity(message.topic), message.key, message.value)
        model.agrees(store)
        model.agrees(memory)
        assert store.counts() == memory.counts() == model.counts()
        assert store.foreign == memory.foreign
        store.close()

        again = IndexStore(Path(folder) / "index")
        again.open()
        model.agrees(again)
        looks_up_alike(again)
        assert again.counts() == model.counts()
        assert again.positions() == ends
        again.close()


def looks_up_alike(known: Known) -> None:
    """Many at once as one by one."""
    for ids in ([*USERS, STRANGER], [STRANGER, *MATCHES]):
        some = [id_.bytes for id_ in ids]
        assert known.unknown_users(some) == [id_ for id_ in some if not known.user(id_)]
        assert known.unknown_matches(some) == [id_ for id_ in some if not known.match(id_)]


def known_ids(known: Known) -> IndexDelta:
    return IndexDelta(
        [user.bytes for user in USERS if known.user(user.bytes)],
        [match.bytes for match in MATCHES if known.match(match.bytes)],
    )


def test_two_users_hold_an_address_until_each_gives_it_up() -> None:
    index = MemoryIndex()
    one, two = USERS[1], USERS[2]
    for id_ in (one, two):
        assert index.apply_row("users", str(id_).encode(), user_row(id_, "a@x.org"))
    shared = address_digest("a@x.org")
    assert index.taken(shared, one.bytes)
    assert index.taken(shared, two.bytes)
    index.apply_row("users", str(one).encode(), None)
    assert index.taken(shared, one.bytes)
    assert not index.taken(shared, two.bytes)
    index.apply_row("users", str(two).encode(), user_row(two, "b@x.org"))
    assert not index.taken(shared, STRANGER.bytes)
    assert index.counts() == {"users": 1, "matches": 0, "addresses": 1}


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_bytes_make_reading_fail(key: bytes, row: bytes) -> None:
    for topic in ("p.accepted.users", "p.accepted.matches"):
        latest = latest_rows([Message(topic, 0, 0, 0, key, row)], {})
        assert len(latest.users) + len(latest.matches) + len(latest.refused) == 1


@pytest.mark.parametrize(
    "topic", ["p.accepted.events", "users", "p.in.users", "p.rejected.matches"]
)
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="not made of topic"):
        latest_rows([Message(topic, 0, 0, 0, b"k", None)], {})


def test_an_id_that_was_known_a_moment_ago_is_unknown_once_it_is_deleted(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index")
    store.open()
    rows = [
        Op("p.accepted.users", USERS[0], ADDRESSES[0]),
        Op("p.accepted.matches", MATCHES[0], "there"),
    ]
    ends = {Partition(op.topic, n): 9 for op in rows for n in range(PARTITIONS)}
    gone = [op._replace(row=None) for op in rows]
    user, match = USERS[0].bytes, MATCHES[0].bytes
    for known, ops in ((True, rows), (False, gone), (True, rows)):
        store.apply([op.message(0) for op in ops], ends)
        for _ in range(2):
            assert store.unknown_users([user]) == ([] if known else [user])
            assert store.unknown_matches([match]) == ([] if known else [match])
    store.close()
