"""Back-pressure in bytes: what is paused, what a decision leaves for the next, what it weighs."""

from __future__ import annotations

import msgspec
import pytest

from schemas import ENTITIES
from tests.unit.core_kit import GRACE, Decision, World, good, owned, to_json, uid
from worker.core.decode import Decoded
from worker.core.outbox import Tally
from worker.core.parked import PARKED_BYTES
from worker.core.pressure import Limits, crowded, loads, overfull, total, weight
from worker.stream import Message

MIB = 1024 * 1024
OTHERS = set(ENTITIES) - {"users", "matches"}
PLENTY = 10**9


def bulky(number: int, size: int = 20_000, **changes: object) -> dict[str, object]:
    return good("milestones", number, metadata={"text": "x" * size}, **changes)


def narrow(world: World, size: int) -> None:
    """Let decisions settle so many bytes; for tasks that are restored from now on."""
    world.rules = msgspec.structs.replace(world.rules, decision_bytes=size)
    world.tasks = [world.restored(number) for number in range(world.count)]


def test_each_level_pauses_for_itself_alone() -> None:
    world = World(partitions=2)
    parking = world.tasks[0].parking
    assert crowded(loads(parking), 0, 0) == set(), "or nothing would ever be read"
    world.send("milestones", good("milestones", 1), partition=0)
    world.round()
    assert crowded(loads(parking), 1, PLENTY) == OTHERS
    assert crowded(loads(parking), 2, PLENTY) == set()
    world.send("matches", good("matches", 1), partition=0)
    world.round()
    assert crowded(loads(parking), 1, PLENTY) == OTHERS | {"matches"}
    world.send("users", good("users", 5, email=owned(1, 2)), partition=0)
    world.round(only=[0])
    assert crowded(loads(parking), 1, PLENTY) == set(ENTITIES)


def test_the_rest_has_half_of_the_room_and_users_and_matches_a_quarter_each() -> None:
    world = World(partitions=2)
    world.send("milestones", good("milestones", 1), partition=0)
    world.send("matches", good("matches", 1), partition=0)
    world.send("users", good("users", 5, email=owned(1, 2)), partition=0)
    world.round(only=[0])
    parking = world.tasks[0].parking
    for level, part in ((OTHERS, 2), ({"matches"}, 4), ({"users"}, 4)):
        room = sum(map(parking.weight, level)) * part
        assert level <= crowded(loads(parking), PLENTY, room)
        assert not level & crowded(loads(parking), PLENTY, room + part)


def test_tasks_that_exceed_their_shares_pause_together() -> None:
    world = World(partitions=2)
    for partition in (0, 1):
        world.send("milestones", bulky(1 + partition), partition=partition)
    world.round()
    parked = [loads(task.parking) for task in world.tasks]
    alone = 2 * parked[0][2].bytes
    assert crowded(total(parked[:1]), PLENTY, alone + 2) == set()
    assert crowded(total(parked), PLENTY, alone + 2) == OTHERS
    assert crowded(total(parked), 2, PLENTY) == OTHERS
    assert crowded(total(parked), 3, PLENTY) == set()


def test_an_inbox_is_full_by_level_and_claims_by_themselves() -> None:
    assert overfull({}, 0) == set(), "or nothing would ever be read"
    assert overfull({"users": 24, "matches": 24, "events": 49}, 100) == set()
    assert overfull({"users": 25}, 100) == {"users"}
    assert overfull({"matches": 25}, 100) == {"matches"}
    assert overfull({"events": 25, "checkins": 25}, 100) == OTHERS
    assert overfull({"claims": 99, "grants": 100}, 100) == {"grants"}


def test_what_is_parked_weighs_its_bytes_and_what_is_settled_nothing() -> None:
    world = World()
    parking = world.tasks[0].parking
    headers = (("trace", b"y" * 5_000),)
    world.send("milestones", bulky(1), headers=headers)
    backwards = to_json(dict(reversed(bulky(2).items())))
    world.send("milestones", backwards)
    world.round()
    once, twice = PARKED_BYTES + 20_000 + 5_000, PARKED_BYTES + 2 * 20_000
    assert once + twice < parking.weight("milestones") < once + twice + 2_500
    first, _ = parking
    assert isinstance(first.decoded, Decoded)
    assert first.decoded.row is first.message.value
    world.send("users", good("users", 1))
    world.settle()
    assert parking.weight("milestones") == 0


def test_a_restored_record_weighs_what_it_did() -> None:
    world = World(persist_after=0)
    world.send("milestones", bulky(1))
    world.round()
    before = world.tasks[0].parking.weight("milestones")
    assert world.restored(0).parking.weight("milestones") == before


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("settled_by", ["user", "frontier"])
def test_a_decision_settles_no_more_than_has_room_and_the_next_goes_on(
    settled_by: str, restart: bool
) -> None:
    world = World(persist_after=0)
    sent = [world.send("milestones", bulky(n)) for n in range(1, 11)]
    world.settle()
    narrow(world, 60_000)
    if settled_by == "user":
        world.send("users", good("users", 1))
    world.now += GRACE + 1 if settled_by == "frontier" else 0
    rounds = 0
    while any(world.kind(one) == "open" for one in sent):
        decision = world.round()[0]
        rounds += 1
        assert sum(len(m.value or b"") for m in decision.outputs) < 60_000 + 45_000
        assert rounds < 20
        task = world.tasks[0]
        left = [one for one in sent if world.kind(one) == "open"]
        if 0 < len(left) < len(sent):
            assert task.can_proceed, "the worker has it go on though nothing new comes"
        if restart and rounds == 5:
            world.tasks[0] = world.restored(0)
            world.now += GRACE + 1
    assert rounds > 3
    assert {world.kind(one) for one in sent} == {"accepted" if settled_by == "user" else "rejected"}
    world.finish()


def test_copies_in_the_log_are_made_bit_by_bit_and_the_oldest_first() -> None:
    world = World(persist_after=0)
    narrow(world, 60_000)
    for number in range(1, 11):
        world.send("milestones", bulky(number))
    world.round()
    kept = []
    while world.tasks[0].has_to_persist(world.moment):
        kept.append(len(world.parked[0]))
        world.round()
    assert kept == sorted(set(kept))
    assert len(kept) >= 3
    assert len(world.parked[0]) == 10


def test_a_farewell_is_said_bit_by_bit() -> None:
    world = World()
    sent = [world.send("milestones", bulky(number)) for number in range(1, 11)]
    world.round()
    narrow(world, 60_000)
    world.round()
    task = world.tasks[0]
    times = 0
    while written := task.flush_parked(world.moment):
        assert sum(len(m.value or b"") for m in written) < 60_000 + 25_000
        world._commit(0, Decision(written, Tally()))
        times += 1
    assert times >= 3
    assert len(world.parked[0]) == len(sent)


@pytest.mark.parametrize("addresses", [(0, 1, 2), (0, 0, 0)])
def test_users_that_come_to_the_head_of_their_queue_claim_though_there_is_no_room(
    addresses: tuple[int, ...],
) -> None:
    world = World(partitions=2)
    narrow(world, 1)
    for which in addresses:
        world.send("users", good("users", 1, email=owned(1, 2, which)), uid(1), partition=0)
    world.settle()
    world.tasks[0] = world.restored(0)
    world.finish()
    assert world.row("users", uid(1)) is not None


def test_shares_are_of_all_tasks_and_a_batch_is_a_mib_at_least() -> None:
    limits = Limits(bytes=256 * MIB)
    assert [limits.room(tasks) for tasks in (1, 4, 256)] == [256 * MIB, 64 * MIB, MIB]
    assert [limits.batch(tasks) for tasks in (1, 4, 256)] == [64 * MIB, 16 * MIB, MIB]
    assert [limits.room(600, of) for of in (1, 300, 600)] == [447_392, 128 * MIB, 256 * MIB]
    assert [limits.batch(600, of) for of in (1, 300, 600)] == [MIB, 32 * MIB, 64 * MIB]


def test_a_message_weighs_what_it_would_parked() -> None:
    plain = Message("t", 0, 0, 0, None, b"x" * 1_000)
    assert weight(plain) == PARKED_BYTES + 1_000
    keyed = msgspec.structs.replace(plain, key=b"k" * 10_000)
    assert weight(keyed) == weight(plain) + 10_000
    headed = msgspec.structs.replace(plain, headers=(("a", b"y" * 10_000),), value=None)
    assert weight(headed) > PARKED_BYTES + 10_000


def test_of_a_queue_a_full_decision_settles_the_head_and_the_next_one_the_rest() -> None:
    world = World(persist_after=0)
    sent = [world.send("milestones", good("milestones", 5, points=n)) for n in range(3)]
    world.settle()
    narrow(world, 1)
    world.send("users", good("users", 1))
    seen = []
    while any(world.kind(one) == "open" for one in sent):
        world.round()
        seen.append([world.kind(one) for one in sent].count("accepted"))
    assert seen[-3:] == [1, 2, 3]
