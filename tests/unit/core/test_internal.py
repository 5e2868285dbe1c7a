"""Garbage in internal topics: read as nothing, whatever it is, and a task goes on beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.core_kit import FIRST_OFFSET, NOW, World, good, saved, uid
from worker.core.addresses import (
    Release,
    Reservation,
    ReservationReply,
    ReservationRequest,
    owner_of,
)
from worker.core.checkpoint import Checkpoint, Counts, write_checkpoint
from worker.core.internal import (
    parked_key,
    read_parked,
    read_progress,
    read_reached,
    read_reply,
    read_request,
    read_reservation,
)
from worker.core.parked import Envelope
from worker.core.reading import offset_of, ordinal_of
from worker.core.task import Task
from worker.core.topics import TASK_INPUTS, Names
from worker.stream import Partition

TASKS = 3
NAMES = Names()
TOPIC = NAMES.input("milestones")
ADDRESS = next(a for n in range(99) if owner_of(a := bytes([0, 0, 0, n] * 4), TASKS) == 1)
USER = bytes(16)
PROGRESS = Checkpoint(
    {"milestones": 9, "claims": 4},
    {"milestones": 3},
    {"milestones": "one"},
    {"users": NOW},
    {"milestones": 2},
    {"milestones": {NOW: [3]}},
    {"milestones": NOW},
    {"milestones": Counts(9, 5, 0, 3, 1)},
    {"clock_stepped": 1},
)
ENVELOPE = Envelope("milestones", TOPIC, 1, 7, NOW, b"k", b"{}", (("a", b"b"),), NOW, NOW, 0, 7)
KEY = parked_key("milestones", 1, 7)

pack = msgspec.msgpack.encode

numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(-2, 12)
scraps: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
nests = st.sampled_from(
    [b"[" * 100_000, b'{"next":' * 50_000, b'{"x":' + b"[" * 9_999, b"\x91" * 100_000, b"\x81" * 9]
)
HONEST = [
    write_checkpoint(PROGRESS),
    pack(ENVELOPE),
    pack(Reservation(ADDRESS, USER, ((0, 5),))),
    pack(ReservationRequest(ADDRESS, USER, 2, 5)),
    pack(Release(ADDRESS, 2, 5)),
    pack(ReservationReply(5, ADDRESS, True)),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A message of ours, cut or with some bytes replaced."""
    value = bytearray(draw(st.sampled_from(HONEST)))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)))):
        value[place % len(value)] = byte
    return bytes(value[: draw(st.integers(0, len(value)) | st.just(len(value)))])


def names_to(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*TASK_INPUTS, "x"]), values, max_size=3)


absurd = st.one_of(
    st.builds(Envelope, st.sampled_from([*ENTITIES, "x"]), st.sampled_from([TOPIC, "x"]),
              numbers, numbers, numbers, st.none() | st.binary(), st.none() | st.binary(),
              st.just(()), numbers, numbers).map(pack),
    st.builds(ReservationRequest, st.binary(max_size=17), st.binary(max_size=17),
              numbers, numbers).map(pack),
    st.builds(ReservationRequest, st.just(ADDRESS), st.just(USER), numbers, numbers).map(pack),
    st.builds(Release, st.just(ADDRESS), numbers, numbers).map(pack),
    st.builds(ReservationReply, numbers, st.binary(max_size=17), st.booleans()).map(pack),
    st.builds(Reservation, st.just(ADDRESS), st.just(USER),
              st.lists(st.tuples(numbers, numbers)).map(tuple)).map(pack),
    st.builds(Checkpoint, names_to(numbers), names_to(numbers), names_to(st.text()),
              names_to(st.dictionaries(numbers, st.lists(numbers), max_size=3)),
              names_to(numbers), names_to(st.builds(Counts, *[numbers] * 5)),
              names_to(numbers)).map(write_checkpoint),
)  # fmt: skip
garbage = (
    st.binary() | scraps.map(pack) | scraps.map(msgspec.json.encode) | nests | damaged() | absurd
)
keys = st.sampled_from([b"1", b"", KEY, ADDRESS.hex().encode(), b"milestones/1/x"]) | st.binary()


@given(garbage, keys)
def test_whatever_the_bytes_are_they_are_read_or_skipped(value: bytes, key: bytes) -> None:
    read_reached(key, value, 1)
    read_progress(key, value, 1)
    read_parked(key, value, 1, NAMES)
    read_reservation(key, value, 1, TASKS)
    read_request(value, 1, TASKS)
    read_reply(value)


@given(
    progress=st.lists(garbage, max_size=2),
    parked=st.lists(garbage, max_size=3),
    granted=garbage,
    notes=st.lists(garbage, max_size=6),
)
def test_a_task_goes_on_beside_whatever_is_left_in_its_topics(
    progress: list[bytes], parked: list[bytes], granted: bytes, notes: list[bytes]
) -> None:
    world = World(partitions=TASKS)
    sent = world.send("milestones", good("milestones", 1, user_id=uid(7)), partition=1)
    world.round()
    rows = {str(place).encode(): value for place, value in enumerate(parked)}
    rows |= {parked_key("milestones", 1, FIRST_OFFSET): value for value in parked}
    was = dict.fromkeys([b"1"], [*progress, *world.progress[1]][-1])
    task = world.tasks[1] = Task(1, world.rules)
    world.granted[1] = {ADDRESS.hex().encode(): granted}  # a task may release what nobody needs
    kept = saved(world.rules, 1, was, rows, world.granted[1])
    task.restore(kept, world.moment)
    task.compare_topics(world.identities, world.spans(1))
    for name in ("claims", "grants"):
        for note in notes:
            world._append(Partition(world.names.input(name), 1), NOW, b"", note, ())
    decision = world.round(only=[1])[1]
    skipped = sum(map(len, decision.tally.unreadable.values()))
    assert decision.tally.read.total() == 0
    assert skipped <= 2 * len(notes)
    world.send("users", good("users", 7), partition=1)
    for _ in range(9):
        world.round()
    assert world.kind(sent) == "accepted"


def test_a_parked_record_of_a_release_without_ordinals_has_its_offset_as_ordinal() -> None:
    earlier = msgspec.structs.replace(ENVELOPE, ordinal=-1)
    current = msgspec.structs.replace(ENVELOPE, ordinal=ENVELOPE.offset)
    key = parked_key(current.entity, 1, current.ordinal)
    assert read_parked(key, pack(earlier), 1, NAMES) == current


def test_what_is_ours_is_read() -> None:
    assert read_progress(b"1", HONEST[0], 1) == PROGRESS
    assert read_reached(b"1", HONEST[0], 1) is not None
    assert read_parked(KEY, HONEST[1], 1, NAMES) == ENVELOPE
    assert read_reservation(ADDRESS.hex().encode(), HONEST[2], 1, TASKS) is not None
    assert isinstance(read_request(HONEST[3], 1, TASKS), ReservationRequest)
    assert isinstance(read_request(HONEST[4], 1, TASKS), Release)
    assert read_reply(HONEST[5]) == ReservationReply(5, ADDRESS, granted=True)


@pytest.mark.parametrize(
    "progress",
    [
        {"next": {"milestones": -1}},
        {"next": {"milestones": 2**40}},
        {"next": {"nobody": 1}},
        {"judged": {"milestones": 10}},
        {"judged": {"users": 1}},
        {"judged": {"milestones": -2}},
        {"judged": {"claims": 1}},
        {"in_memory": {"nobody": {NOW: [1]}}},
        {"in_memory": {"milestones": {}}},
        {"in_memory": {"milestones": {NOW: []}}},
        {"in_memory": {"milestones": {NOW: [9]}}},
        {"in_memory": {"milestones": {10**15: [1]}}},
        {"earlier": {"milestones": -1}},
        {"earlier": {"milestones": 2**40}},
        {"counts": {"nobody": Counts()}},
        {"counts": {"users": Counts(read=-1)}},
        {"incidents": {"clock_stepped": 2**63}},
    ],
)
def test_a_progress_that_cannot_be_is_none(progress: dict[str, Any]) -> None:
    value = write_checkpoint(msgspec.structs.replace(PROGRESS, **progress))
    assert read_progress(b"1", value, 1) is None
    if not progress.keys().isdisjoint({"next", "judged"}):
        assert read_reached(b"1", value, 1) is None


@pytest.mark.parametrize("read", [read_progress, read_reached])
def test_the_progress_of_another_task_counts_nowhere_else(read: Callable[..., object]) -> None:
    assert read(b"0", HONEST[0], 1) is None
    assert read(b"1", HONEST[0], 0) is None


@pytest.mark.parametrize(
    "change",
    [
        {"entity": "nobody"},
        {"entity": "users"},
        {"topic": "other.in.milestones"},
        {"partition": 2},
        {"offset": 8},
        {"arrival": -1},
        {"arrival": 10**15},
        {"first_read": 10**15},
    ],
)
def test_an_envelope_that_is_not_this_tasks_is_none(change: dict[str, Any]) -> None:
    assert read_parked(KEY, pack(msgspec.structs.replace(ENVELOPE, **change)), 1, NAMES) is None


@pytest.mark.parametrize(
    "value",
    [
        ReservationRequest(ADDRESS, USER, 3, 5),
        ReservationRequest(ADDRESS, USER, -1, 5),
        ReservationRequest(ADDRESS, USER, 0, -5),
        ReservationRequest(ADDRESS, USER, 0, 2**63),
        ReservationRequest(ADDRESS, USER[1:], 0, 5),
        ReservationRequest(ADDRESS[1:], USER, 0, 5),
        Release(ADDRESS, 3, 5),
        Release(b"", 0, 5),
    ],
)
def test_a_claim_that_cannot_be_answered_is_none(value: ReservationRequest | Release) -> None:
    assert read_request(pack(value), 1, TASKS) is None


def test_a_claim_in_the_partition_of_another_owner_is_none() -> None:
    assert read_request(HONEST[3], 0, TASKS) is None


def test_a_claim_or_a_grant_without_a_value_is_none() -> None:
    assert read_request(None, 0, 1) is None
    assert read_reply(None) is None


def test_a_record_keeps_its_ordinal_over_recreated_topics() -> None:
    twice = msgspec.structs.replace(PROGRESS, earlier={"users": 2})
    assert ordinal_of(twice, "users", 7) == 2 * 2**40 + 7
    assert ordinal_of(twice, "matches", 7) == 7
    assert offset_of(ordinal_of(twice, "users", 7)) == 7
