"""Whatever happens in whatever order, the promises of the contract hold at the end."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.core.histories_kit import (
    PARTITIONS,
    Send,
    Step,
    crashes,
    histories,
    numbers,
    rounds,
    run,
    sends,
)
from tests.unit.core_kit import GRACE, World, good, uid
from worker.core.checkpoint import Checkpoint
from worker.core.keys import id_bytes
from worker.core.known import address_digest
from worker.index.memory import MemoryIndex
from worker.stream import Partition, ProducerRecord

OWN_FAULT = {"malformed_record", "invalid_enum", "invalid_key"}


def row_of(world: World, topic: str) -> dict[bytes, list[tuple[int, bool]]]:
    """When which rows were sent of each id: the time of the input, and whether it was a row."""
    found: dict[bytes, list[tuple[int, bool]]] = defaultdict(list)
    sent = {
        f"{place.topic}/{place.number}/{m.offset}": m.timestamp
        for place, log in world.inputs.items()
        for m in log
    }
    for message in world.committed:
        if message.topic == topic:
            assert message.key is not None
            source = dict(message.headers)["buddy-source"].decode()
            found[message.key].append((sent[source], message.value is not None))
    return found


@given(histories(foreign=True))
def test_every_record_has_exactly_one_outcome(history: list[Step]) -> None:
    world = run(history)
    for step_number, found in enumerate(world.outcomes().values()):
        assert len(found) == 1, step_number
    sent = sum(isinstance(step, Send) for step in history)
    assert len(world.outcomes()) == sent


@given(histories(foreign=True))
def test_progress_never_goes_back_and_reaches_the_end(history: list[Step]) -> None:
    world = run(history)
    for number, written in enumerate(world.progress):
        before: dict[str, int] = defaultdict(int)
        for value in written:
            progress = msgspec.json.decode(value, type=Checkpoint)
            now = {**{f"next {n}": at for n, at in progress.next.items()}, **progress.judged}
            assert all(at >= before[name] for name, at in now.items())
            before.update(now)
        for entity in ("users", "matches"):
            [end] = [end for place, end in world.ends([entity]).items() if place.number == number]
            assert before[entity] == before[f"next {entity}"] or not written
            assert before[entity] == end or not written


@given(histories())
def test_records_of_one_key_have_their_outcomes_in_order(history: list[Step]) -> None:
    world = run(history)
    place_of = {id(message): place for place, message in enumerate(world.committed)}
    last: dict[tuple[str, bytes | None], int] = {}
    for source, [outcome] in world.outcomes().items():  # in the order of the inputs
        if set(outcome.codes) & OWN_FAULT:
            continue
        topic = source.split("/")[0]
        key = outcome.message.key
        if outcome.kind == "rejected":
            told = msgspec.json.decode(outcome.message.value or b"")
            key = told["key"].encode()
        place = place_of[id(outcome.message)]
        assert last.get((topic, key), -1) < place
        last[topic, key] = place


@given(histories(foreign=True))
def test_nobody_is_an_orphan_whose_reference_was_sent_within_the_grace(
    history: list[Step],
) -> None:
    world = run(history)
    rows = {name: row_of(world, world.names.accepted(name)) for name in ("users", "matches")}
    for source, [outcome] in world.outcomes().items():
        if not {"orphaned_user_id", "orphaned_match_id"} & set(outcome.codes):
            continue
        entity = source.split("/")[0].rsplit(".", 1)[1]
        deadline = world.first_read[source] + GRACE  # KeyError: it was never parked
        record = sent_record(world, source)
        missing = []
        for column in ENTITIES[entity].columns:
            if column.refers_to is None or column.name not in record:
                continue
            came = rows[column.refers_to][record[column.name].encode()]
            # At the deadline itself the grace has passed, and the frontier may be measured.
            in_time = any(is_row and when < deadline for when, is_row in came)
            if not in_time or not all(is_row for _, is_row in came):
                missing.append(column.name)
        assert missing, source


@given(histories(foreign=True))
def test_a_duplicate_was_refused_for_a_user_that_was_accepted(history: list[Step]) -> None:
    world = run(history)
    had: dict[str, set[bytes | None]] = defaultdict(set)
    for message in world.committed:
        if message.topic == world.names.accepted("users") and message.value is not None:
            had[msgspec.json.decode(message.value)["email"]].add(message.key)
    for source, [outcome] in world.outcomes().items():
        if "duplicate_email" in outcome.codes:
            record = sent_record(world, source)
            assert had[record["email"]] - {record["id"].encode()}


@given(histories(foreign=True), st.integers())
def test_the_index_is_the_same_function_of_the_log_in_whatever_order_it_is_read(
    history: list[Step], seed: int
) -> None:
    world = run(history)
    topics = {world.names.accepted("users"), world.names.accepted("matches")}
    logs = {place: log for place, log in world.accepted.items() if place.topic in topics}
    shuffled = MemoryIndex()
    for place, message in interleaved(logs, Random(seed)):
        entity = world.names.entity_of(place.topic)
        shuffled.apply_row(entity, message.key, message.value)  # type: ignore[arg-type]
    assert state(shuffled) == state(world.index) == latest(logs)


def deletes_what_others_refer_to(sent: Send) -> bool:
    return sent.record is None and sent.entity in ("users", "matches")


@given(
    st.lists(
        sends(contested=False).filter(lambda sent: not deletes_what_others_refer_to(sent))
        | rounds(crash=st.just("after commit"), lag=st.just(False)),
        max_size=30,
    )
)
def test_a_crash_after_any_commit_changes_no_outcome(history: list[Step]) -> None:
    """Without deletions of users and matches.

    Whoever takes over looks at parked records again, so one may be accepted before a deletion in
    another partition that it would otherwise have come after. Either verdict is right.
    """
    crashed, undisturbed = run(history), run(history, crash=False)
    assert verdicts(crashed) == verdicts(undisturbed)
    assert state(crashed.index) == state(undisturbed.index)


@given(
    st.lists(
        numbers.map(lambda number: Send("users", good("users", number)))
        | sends(contested=False).filter(lambda s: s.record is not None and s.entity != "users")
        | rounds(crash=crashes),
        max_size=30,
    )
)
def test_where_nothing_is_deleted_no_speed_and_no_crash_changes_an_outcome(
    history: list[Step],
) -> None:
    at_once = World(partitions=PARTITIONS)
    for step in history:
        if isinstance(step, Send):
            at_once.send(step.entity, step.record, step.key)
    at_once.finish()
    assert verdicts(run(history)) == verdicts(at_once)


def sent_record(world: World, source: str) -> dict[str, Any]:
    topic, number, offset = source.split("/")
    log = world.inputs[Partition(topic, int(number))]
    [value] = [m.value for m in log if m.offset == int(offset)]
    record: dict[str, Any] = msgspec.json.decode(value or b"")
    return record


def interleaved(
    logs: dict[Partition, list[ProducerRecord]], random: Random
) -> list[tuple[Partition, ProducerRecord]]:
    """The messages of all logs, those of one in their order."""
    turns = [place for place, log in logs.items() for _ in log]
    random.shuffle(turns)
    rest = {place: iter(log) for place, log in logs.items()}
    return [(place, next(rest[place])) for place in turns]


def state(index: MemoryIndex) -> dict[str, Any]:
    """What an index answers about everything that occurs here."""
    ids = [id_bytes(uid(number)) for number in range(1, 4)]
    digests = [address_digest(f"a{number}@example.org") for number in range(40)]
    return {
        "users": [index.user(one) for one in ids],
        "matches": [index.match(one) for one in ids],
        "holders": [sorted(index.holders(one)) for one in digests],
    }


def latest(logs: dict[Partition, list[ProducerRecord]]) -> dict[str, Any]:
    """The same from the latest row of each key alone."""
    index = MemoryIndex()
    rows = {(place.topic, m.key): m.value for place, log in logs.items() for m in log}
    for (topic, key), row in rows.items():
        entity = topic.rsplit(".", 1)[1]
        index.apply_row(entity, key, row)  # type: ignore[arg-type]
    return state(index)


def verdicts(world: World) -> dict[str, Any]:
    """Every record with its verdict."""
    return {
        source: [(o.kind, o.codes, o.fields) for o in found]
        for source, found in world.outcomes().items()
    }
