"""Of every message of a round its record is known, and a refused rejection gets smaller."""

from __future__ import annotations

import json

import msgspec

from tests.unit.core_kit import World, good, owned, uid
from worker.core.checkpoint import Checkpoint
from worker.core.decode import Invalid
from worker.core.refused import record_of
from worker.core.rejection import reject
from worker.core.violations import Code, violation
from worker.stream import ProducerRecord


def test_messages_about_a_record_name_it_and_others_none() -> None:
    world = World(partitions=2, persist_after=0)
    world.send("users", good("users", 1, email=owned(1, 2)), partition=0)
    world.send("milestones", good("milestones", 5), partition=0)
    world.send("milestones", b"{", partition=0)
    world.send("users", None, uid(9), partition=0)
    for _ in range(4):
        world.round()
    named = {(m.topic.partition(".")[2], record_of(m, world.names)) for m in world.committed}
    assert named == {
        ("internal.parked", (0, ("users", 3))),
        ("internal.parked", (0, ("milestones", 3))),
        ("internal.claims", (0, ("users", 3))),
        ("internal.grants", None),
        ("internal.granted", None),
        ("internal.progress", None),
        ("accepted.users", (0, ("users", 3))),
        ("accepted.users", (0, ("users", 5))),
        ("accepted.milestones", (0, ("milestones", 3))),
        ("rejected.milestones", (0, ("milestones", 5))),
    }


def test_a_record_whose_outcome_is_refused_is_rejected_with_fewer_words_each_time() -> None:
    sizes = []
    for refusals in (1, 2):
        world = World()
        task = world.tasks[0]
        sent = world.send("users", good("users", 1), headers=(("trace", b"x" * 900),))
        other = world.send("users", good("users", 2))
        task.commit_refusals = {("users", 3): refusals}
        tally = world.round()[0].tally
        outcome = world.outcome(sent)
        assert outcome is not None
        assert (outcome.kind, outcome.codes) == ("rejected", ("internal_error",))
        assert world.kind(other) == "accepted"
        assert tally.isolated == [("users", 3)]
        assert tally.read == {"users": 2}
        assert tally.failures == [(sent, "MessageRefused")]
        sizes.append(len(outcome.message.value or b""))
    assert sizes[0] > 1_000 > sizes[1]


def test_a_parked_record_whose_outcome_is_refused_is_rejected_when_restored() -> None:
    world = World(persist_after=0)
    sent = world.send("milestones", good("milestones", 5))
    behind = world.send("milestones", good("milestones", 5, points=7))
    world.round()
    world.commit_refusals = {("milestones", 3): 1}
    world.tasks[0] = world.restored(0)
    world.round()
    assert (world.kind(sent), world.kind(behind)) == ("rejected", "open")
    assert list(world.parked[0]) == [b"milestones/0/5"]
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(behind) == "accepted"


def test_a_refused_user_is_rejected_in_the_first_decision_though_that_is_full() -> None:
    """Its grant may be settled there: whoever takes over next would wait for it in vain."""
    world = World(partitions=2, persist_after=0)
    other = world.send("milestones", good("milestones", 5), partition=0)
    world.round()
    world.now += 10
    user = world.send("users", good("users", 1, email=owned(1, 2)), partition=0)
    world.round()
    world.commit_refusals = {("milestones", 3): 1, ("users", 3): 1}
    world.rules = msgspec.structs.replace(world.rules, decision_bytes=1)
    world.tasks[0] = world.restored(0)
    world.round()
    assert (world.kind(user), world.kind(other)) == ("rejected", "open")
    saved = msgspec.json.decode(world.progress[0][-1], type=Checkpoint)
    assert saved.counts["milestones"].parked == 1, "it waits for room"
    world.tasks[0] = world.restored(0)
    world.settle()
    assert world.kind(other) == "rejected"


def test_the_smallest_rejection_is_small_whatever_is_wrong() -> None:
    world = World()
    world.send("users", b"{" * 9_999, headers=(("x" * 999, b"y" * 999),), key=b"k" * 9_999)
    [message] = world.inputs[next(p for p in world.inputs if p.topic.endswith("users"))]
    found = tuple(violation(Code.WRONG_TYPE, f"interests[{n}]", "x" * 50) for n in range(100))
    value, omitted = reject("users", message, Invalid(None, found, 7, malformed=True), 0, 0)
    assert omitted
    assert len(value) < 700
    assert json.loads(value)["violations_omitted"] == 106
    assert msgspec.json.decode(value)["record_omitted"]["bytes"] == 9_999


def test_a_message_without_the_coordinate_of_a_record_names_none() -> None:
    names = World().names
    foreign = ProducerRecord(names.accepted("users"), b"k", b"{}", (("trace", b"x"),))
    assert record_of(foreign, names) is None
    ours = msgspec.structs.replace(
        foreign, headers=(*foreign.headers, ("buddy-source", b"buddy.in.users/1/7"))
    )
    assert record_of(ours, names) == (1, ("users", 7))
