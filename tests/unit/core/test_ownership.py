"""Who is to be fenced before a task may be taken over: whatever its log of owners holds."""

from __future__ import annotations

import re
from itertools import count
from typing import Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.ownership import (
    earlier_writer_name,
    no_owners,
    owner_record,
    owner_tombstone,
    owners_before,
    writer_name,
)
from worker.core.topics import Names
from worker.stream import Message

NAMES = Names()
TASK = 3
OWNERS = [f"{n:032x}" for n in (10, 11, 12, 13)]

Said = tuple[str, bool]
"""An owner, and whether it takes over; else it is given up, by itself or by whoever fenced it."""

said = st.tuples(st.sampled_from(OWNERS), st.booleans())
garbage = st.tuples(
    st.none()
    | st.binary(max_size=40)
    | st.sampled_from([OWNERS[0].upper().encode(), OWNERS[0].encode() + b"\n", b"3", b"\xff" * 32]),
    st.none() | st.just(b"{}"),
)


def written(said: Said) -> tuple[bytes | None, bytes | None]:
    owner, takes_over = said
    message = (owner_record if takes_over else owner_tombstone)(NAMES, TASK, owner)
    assert (message.topic, message.partition) == (NAMES.owners, TASK)
    return message.key, message.value


def log_of(entries: list[tuple[bytes | None, bytes | None]], step: int = 2) -> list[Message]:
    """These as messages; offsets have gaps."""
    return [
        Message(NAMES.owners, TASK, step * n, 0, key, value)
        for n, (key, value) in enumerate(entries)
    ]


def is_owner(key: bytes | None) -> bool:
    return key is not None and key in [owner.encode() for owner in OWNERS]


@given(st.lists(said.map(written) | garbage, max_size=30))
def test_garbage_among_the_owners_is_known(
    entries: list[tuple[bytes | None, bytes | None]],
) -> None:
    log = log_of(entries)
    assert no_owners(log) == [
        m.offset for m in log if re.fullmatch(rb"[0-9a-f]{32}", m.key or b"") is None
    ]


@given(st.lists(said, max_size=30), st.integers(0, 62))
def test_whoever_took_over_last_and_was_not_given_up_since_is_to_be_fenced(
    history: list[Said], offset: int
) -> None:
    before = [entry for n, entry in enumerate(history) if 2 * n < offset]
    last = {owner: n for n, (owner, _) in enumerate(before)}
    expected = [owner for n, (owner, takes) in enumerate(before) if takes and last[owner] == n]
    assert owners_before(log_of(list(map(written, history))), offset) == expected


@given(st.lists(said.map(written) | garbage, max_size=30))
def test_what_is_no_owner_hides_none_and_is_none(
    entries: list[tuple[bytes | None, bytes | None]],
) -> None:
    clean = [entry for entry in entries if is_owner(entry[0])]
    assert owners_before(log_of(entries), 99) == owners_before(log_of(clean), 99)


@given(st.lists(said, max_size=30), st.data())
def test_compaction_hides_no_owner(history: list[Said], data: st.DataObject) -> None:
    messages = log_of(list(map(written, history)))
    last = {message.key: message.offset for message in messages}
    gone = data.draw(st.sets(st.sampled_from([m.offset for m in messages]))) if messages else ()
    left = [m for m in messages if m.offset == last[m.key] or m.offset not in gone]
    # A tombstone goes as well, in the end; then all of its key before it has gone.
    keys = data.draw(st.sets(st.sampled_from(OWNERS)))
    left = [m for m in left if m.value is not None or (m.key or b"").decode() not in keys]
    left = [m for m in left if m.offset == last[m.key] or (m.key or b"").decode() not in keys]
    assert owners_before(left, 99) == owners_before(messages, 99)


def test_an_owner_writes_under_a_name_of_its_own() -> None:
    assert writer_name(NAMES, OWNERS[0]) == f"buddy-task-{OWNERS[0]}"
    assert earlier_writer_name(NAMES, 7) == "buddy-task-7"
    assert writer_name(Names("other"), OWNERS[0]).startswith("other-")


# --- the rule that take-overs follow ------------------------------------------------------------

Action = Literal["take over", "fence", "release", "strike out"]


class Step(NamedTuple):
    """What one worker does next."""

    worker: int
    action: Action


class Protocol:
    """Workers that take one task from each other, as `engine/takeover` does; they may freeze."""

    def __init__(self) -> None:
        self.log: list[Message] = []
        self._numbers = count(1)
        self.names = [self._name() for _ in range(3)]
        """As whom each worker writes."""
        self.fenced: set[str] = set()
        self.taking: dict[str, int] = {}
        self.writing: set[str] = set()
        """Who believes that the task is its own."""
        self.struck: dict[str, list[str]] = {}

    def do(self, step: Step) -> None:
        owner = self.names[step.worker]
        if owner in self.fenced:  # it finds out with whatever it does
            self.writing.discard(owner)
            self.taking.pop(owner, None)
            self.names[step.worker] = self._name()
        elif step.action == "take over" and owner not in self.taking | dict.fromkeys(self.writing):
            self.taking[owner] = self._say((owner, True))
        elif step.action == "fence" and owner in self.taking:
            self._fence(owner, self.taking.pop(owner))
        elif step.action == "release" and owner in self.writing:
            self.writing.remove(owner)
            self._say((owner, False))
        elif step.action == "strike out" and owner in self.writing:
            for earlier in self.struck.pop(owner, []):
                self._say((earlier, False))

    def _fence(self, owner: str, offset: int) -> None:
        late = {(m.key or b"").decode() for m in self.log if m.offset > offset and not m.value}
        earlier = [one for one in owners_before(self.log, offset) if one not in {owner, *late}]
        self.fenced.update(earlier)
        self.struck[owner] = earlier
        self.writing.add(owner)

    def _say(self, said: Said) -> int:
        offset = 2 * len(self.log)
        self.log.append(Message(NAMES.owners, TASK, offset, 0, *written(said)))
        return offset

    def _name(self) -> str:
        return f"{next(self._numbers):032x}"


steps = st.builds(
    Step,
    st.integers(0, 2),
    st.sampled_from(["take over", "fence", "release", "strike out"]),
)


@given(st.lists(steps, max_size=60))
def test_never_do_two_write_at_once_whoever_freezes_when(history: list[Step]) -> None:
    protocol = Protocol()
    for step in history:
        protocol.do(step)
        assert len(protocol.writing - protocol.fenced) <= 1


@pytest.mark.parametrize(
    ("history", "writes"),
    [
        pytest.param([(0, "take over"), (0, "fence")], 0, id="alone"),
        pytest.param(
            [(0, "take over"), (1, "take over"), (1, "fence"), (0, "fence")], 1, id="the later one"
        ),
        pytest.param(
            [(0, "take over"), (1, "take over"), (0, "fence"), (1, "fence")], 1, id="in order"
        ),
        pytest.param(
            [(0, "take over"), (0, "fence"), (0, "release"), (1, "take over"), (1, "fence")],
            1,
            id="handed over",
        ),
    ],
)
def test_of_two_that_take_over_from_each_other_the_later_one_writes(
    history: list[tuple[int, Action]], writes: int
) -> None:
    protocol = Protocol()
    names = list(protocol.names)
    for step in history:
        protocol.do(Step(*step))
    assert protocol.writing - protocol.fenced == {names[writes]}


def test_an_orderly_hand_over_fences_nobody() -> None:
    protocol = Protocol()
    for step in [(0, "take over"), (0, "fence"), (1, "take over"), (0, "release"), (1, "fence")]:
        protocol.do(Step(*step))  # type: ignore[arg-type]
    assert not protocol.fenced
