"""Batches decoded by column and accepted at once: the verdicts and rows of records judged alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.cases_kit import key_of, load, value_of
from tests.unit.core.histories_kit import Step, histories, run
from tests.unit.core.records_kit import DECODERS, LATEST, Drawn, any_values, good_records
from tests.unit.core_kit import World, good, to_json, uid
from worker.core.columns import ColumnDecoder
from worker.core.decode import Decoded, DecodeResult, Invalid, RecordDecoder, latest_moment
from worker.core.keys import id_bytes, ids_of
from worker.core.rules import are_uuids, odd_uuids, read_uuid
from worker.core.task_round import TaskRound
from worker.demo.record_stream import stream
from worker.stream import Message

COLUMNS = {name: ColumnDecoder(single) for name, single in DECODERS.items()}
SKEW = 60
ARRIVAL = int((LATEST - timedelta(seconds=SKEW)).timestamp() * 1000)


class Sent(NamedTuple):
    """A message of one entity, and when it arrived."""

    entity: str
    value: bytes | None
    key: bytes | None
    arrival: int


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    """Anything that may come in: mostly good, and then under its own key."""
    entity, value = draw(
        any_values() | good_records().map(lambda drawn: (drawn.entity, drawn.value))
    )
    outcome = DECODERS[entity.name].decode(value, None, LATEST)
    own = b"" if outcome.key is None else outcome.key
    if isinstance(outcome, Decoded) and draw(st.booleans()):
        value = outcome.row
    key = draw(st.sampled_from([own, own, own.upper(), None]) | st.binary(max_size=40))
    arrival = draw(st.sampled_from([ARRIVAL, ARRIVAL, ARRIVAL + 5_000]) | st.integers(0, ARRIVAL))
    return Sent(entity.name, draw(st.sampled_from([value, value, value, None])), key, arrival)


def both_ways(batch: Sequence[Sent]) -> tuple[list[DecodeResult], list[DecodeResult]]:
    """The outcomes of messages of one entity: as a batch, and one by one."""
    columns = COLUMNS[batch[0].entity]
    _, values, keys, arrivals = map(list, zip(*batch, strict=True))
    alone = [
        columns.single.decode(one.value, one.key, latest_moment(one.arrival, SKEW)) for one in batch
    ]
    return columns.decode_all(values, keys, arrivals, SKEW), alone


def by_entity(messages: Sequence[Sent]) -> list[list[Sent]]:
    found = defaultdict(list)
    for message in messages:
        found[message.entity].append(message)
    return list(found.values())


@given(st.lists(sent(), min_size=1, max_size=12))
def test_a_batch_has_the_outcomes_of_its_records_alone(messages: list[Sent]) -> None:
    for batch in by_entity(messages):
        together, alone = both_ways(batch)
        assert together == alone


def test_the_demo_has_the_same_outcomes_either_way_and_few_records_are_left_out() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    arrival = int(now.timestamp() * 1000)
    messages = [
        Sent(r.entity, r.value, None if r.key is None else r.key.encode(), arrival)
        for r in stream(4_000, 1, now, 0.1)
    ]
    good = left_out = 0
    for batch in by_entity(messages):
        together, alone = both_ways(batch)
        assert together == alone
        good += sum(isinstance(outcome, Decoded) for outcome in alone)
        _, values, keys, arrivals = map(list, zip(*batch, strict=True))
        _, others = COLUMNS[batch[0].entity].decode(values, keys, arrivals, SKEW)
        left_out += sum(isinstance(outcome, Decoded) for outcome in others.values())
    assert good > 3_000
    assert left_out < good / 50


def test_the_corpus_has_the_same_outcomes_in_batches() -> None:
    cases = [param.values[0] for param in load()]
    for batch in by_entity(
        [Sent(case["entity"], value_of(case), key_of(case), ARRIVAL) for case in cases]
    ):
        together, alone = both_ways(batch)
        assert together == alone


@given(good_records())
def test_a_canonical_row_under_its_key_is_plainly_good(drawn: Drawn) -> None:
    columns = COLUMNS[drawn.entity.name]
    outcome = columns.single.decode(drawn.value, None, LATEST)
    assert isinstance(outcome, Decoded)
    found, others = columns.decode([outcome.row], [outcome.key], [ARRIVAL], SKEW)
    if outcome.address is None:  # those of an uncommon kind are looked at alone
        assert (found.keys, found.encoded, others) == ([outcome.key], [outcome.row], {})


def test_a_row_that_is_too_long_in_canonical_form_is_left_out() -> None:
    columns = ColumnDecoder(RecordDecoder(ENTITIES["checkins"], 1_000))
    long = to_json(good("checkins", 1, question_responses={"a": "numbers"}))
    long = long.replace(b'"numbers"', b"[" + b",".join([b"1E15"] * 150) + b"]")
    assert len(long) < 1_000
    values = [long, to_json(good("checkins", 2))]
    found, others = columns.decode(values, [None, None], [ARRIVAL, ARRIVAL], SKEW)
    assert list(found.indices) == [1]
    assert isinstance(others[0], Invalid)


@given(st.lists(st.uuids(version=4).map(str)), st.data())
def test_uuids_that_are_not_canonical_are_found_among_many(
    uuids: list[str], data: st.DataObject
) -> None:
    others = [uuid.upper() for uuid in uuids] + [uuid[:-1] for uuid in uuids] + ["", "é" * 36]
    others += [uuid.replace("-", "0") for uuid in uuids] + [uuid[::-1] for uuid in uuids]
    mixed = data.draw(st.lists(st.sampled_from(uuids + others) | st.text(max_size=37)))
    expected = [at for at, text in enumerate(mixed) if read_uuid(text) != text]
    assert list(odd_uuids(mixed)) == expected
    assert are_uuids(mixed) == (not expected)
    assert ids_of(uuids) == list(map(id_bytes, uuids))


@given(st.text("0123456789abcdef-4", min_size=36, max_size=36) | st.uuids().map(str))
def test_a_uuid_is_judged_alike_alone_and_among_many(text: str) -> None:
    assert are_uuids([uid(1), text, uid(2)]) == (read_uuid(text) == text)


def one_by_one(
    part: TaskRound, entity: str, batch: Sequence[Message], arrivals: Sequence[int]
) -> list[tuple[int, None]]:
    """`TaskRound._sort_out` that accepts nothing at once."""
    return [(place, None) for place in range(len(batch))]


def by_key(world: World) -> dict[tuple[str, bytes | None], list[Any]]:
    """What was written, in order for each key of each topic."""
    found: dict[tuple[str, bytes | None], list[Any]] = defaultdict(list)
    for message in world.committed:
        is_progress = message.topic == world.names.progress
        value = message.value if not is_progress else json.loads(message.value or b"")
        found[message.topic, message.key].append((value, message.headers, message.partition))
    return found


@given(histories())
def test_tasks_write_the_same_with_and_without_batches(history: list[Step]) -> None:
    batches = run(history)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskRound, "_sort_out", one_by_one)
        alone = run(history)
    assert by_key(batches) == by_key(alone)


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("first", ["unknown field", "unknown match", "deletion"])
def test_nothing_overtakes_an_earlier_record_of_its_key(first: str, rounds: int) -> None:
    world = World()
    for entity, number in (("users", 1), ("users", 2), ("matches", 1)):
        world.send(entity, good(entity, number))
    world.settle()
    match first:
        case "unknown field":
            earlier = world.send("checkins", good("checkins", 1, other=1))
        case "unknown match":
            earlier = world.send("checkins", good("checkins", 1, match_id=uid(2)))
        case _:
            earlier = world.delete("checkins", uid(1))
    if rounds == 2:
        world.round()
    later = world.send("checkins", good("checkins", 1, notes="later"))
    world.send("checkins", good("checkins", 2))
    world.settle()
    assert world.kind(later) == ("open" if first == "unknown match" else "accepted")
    world.send("matches", good("matches", 2))
    world.settle()
    source = [message.headers[0] for message in world.committed if message.key == uid(1).encode()]
    assert source[-2:] == [("buddy-source", one.encode()) for one in (earlier, later)]


def test_rows_that_cannot_be_written_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr("worker.core.columns._encode", fail)
    world = World()
    sent = [world.send("users", good("users", n)) for n in (1, 2)]
    world.settle()
    assert [world.kind(one) for one in sent] == ["accepted"] * 2
