"""Requests for addresses that nobody answers, since the log has lost them or the replies."""

from __future__ import annotations

from tests.unit.core_kit import World, good, owned, saved, uid
from worker.core.addresses import ReservationReply, ReservationRequest
from worker.core.internal import read_reply, read_request
from worker.core.task import Task
from worker.stream import Partition

FIVE_MINUTES = 300_000


def requests(world: World) -> list[ReservationRequest]:
    """The requests that the owner, task 1, has in its log."""
    log = world.inputs[Partition(world.names.claims, 1)]
    asked = [read_request(message.value, 1, world.count) for message in log]
    return [one for one in asked if isinstance(one, ReservationRequest)]


def replies(world: World) -> list[ReservationReply]:
    log = world.inputs[Partition(world.names.grants, 0)]
    return [reply for m in log if (reply := read_reply(m.value)) is not None]


def asking() -> tuple[World, str]:
    """A user of task 0 that has asked task 1 for its address."""
    world = World(partitions=2)
    sent = world.send("users", good("users", 2, email=owned(1, 2)), partition=0)
    world.round(only=[0])
    assert len(requests(world)) == 1
    return world, sent


def lose_requests(world: World) -> None:
    world.inputs[Partition(world.names.claims, 1)].clear()


def test_a_lost_request_is_repeated_after_five_minutes() -> None:
    world, sent = asking()
    lose_requests(world)
    world.now += FIVE_MINUTES - 1
    decision = world.round(only=[0])[0]
    assert (requests(world), decision.tally.asked_again) == ([], 0)
    world.now += 60_000  # a task looks once a minute
    decision = world.round(only=[0])[0]
    assert ([one.attempt for one in requests(world)], decision.tally.asked_again) == ([1], 1)
    world.settle()
    assert world.kind(sent) == "accepted"
    world.finish()


def test_each_attempt_waits_twice_as_long() -> None:
    world, _ = asking()
    moments = []
    for minute in range(1, 80):
        lose_requests(world)
        world.now += 60_000
        world.round(only=[0])
        if requests(world):
            moments.append(minute)
    assert moments == [5, 15, 35, 75]


def test_a_take_over_repeats_it_once_it_is_old() -> None:
    world, sent = asking()
    lose_requests(world)
    world.now += FIVE_MINUTES
    world.tasks[0] = world.restored(0)
    world.round(only=[0])
    assert [one.attempt for one in requests(world)] == [1]
    world.settle()
    assert world.kind(sent) == "accepted"


def test_the_next_owner_of_the_task_knows_which_attempt_counts() -> None:
    world, sent = asking()
    lose_requests(world)
    world.now += FIVE_MINUTES + 60_000
    world.round(only=[0])
    world.tasks[0] = world.restored(0)
    world.round(only=[0])
    world.round(only=[1])
    assert [(reply.granted, reply.attempt) for reply in replies(world)] == [(True, 1)]
    world.settle()
    assert world.kind(sent) == "accepted"
    world.finish()


def test_a_late_reply_and_the_one_to_the_repeated_request_are_one_verdict() -> None:
    world, sent = asking()
    world.now += FIVE_MINUTES + 60_000
    world.round(only=[0])
    assert [one.attempt for one in requests(world)] == [0, 1]
    world.settle()
    assert world.kind(sent) == "accepted"
    world.finish()


def rival(world: World) -> str:
    """Another user of task 0 that asks for the same address."""
    return world.send("users", good("users", 3, email=owned(1, 2)), partition=0)


def settled_without_release() -> World:
    """A granted user, accepted and deleted, whose release the log has lost unread."""
    world, sent = asking()
    world.round(only=[1])
    world.round(only=[0])
    assert world.kind(sent) == "accepted"
    del world.inputs[Partition(world.names.claims, 1)][1:]
    world.delete("users", uid(2), partition=0)
    world.settle()
    assert len(world.tasks[1].addresses) == 1
    return world


def test_a_lost_release_is_asked_for_again() -> None:
    world = settled_without_release()
    refused = rival(world)
    world.settle()
    assert world.kind(refused) == "rejected", "nobody knows yet"
    world.settle()  # the owner sees the reservation for the first time
    for _ in range(7):
        world.now += 60_000
        world.round(only=[1])
    world.settle()
    assert len(world.tasks[1].addresses) == 0
    granted = rival(world)
    world.settle()
    assert world.kind(granted) == "accepted"
    world.finish()


def test_reservations_that_came_back_are_released_at_once() -> None:
    """The topic of reservations has lost its last messages: the removals."""
    world, sent = asking()
    world.round(only=[1])
    reserved = dict(world.granted[1])
    world.settle()
    assert (world.kind(sent), world.granted[1]) == ("accepted", {})
    world.delete("users", uid(2), partition=0)
    world.settle()
    world.granted[1], world.missing_reservations = reserved, -1
    world.tasks[1] = world.restored(1)
    assert world.tasks[1].doubtful
    assert world.tasks[1].books.incidents["internal_truncated"] == 1
    world.settle()
    granted = rival(world)
    world.settle()
    assert world.kind(granted) == "accepted"
    world.finish()


def test_lost_reservations_are_told() -> None:
    world, _ = asking()
    world.round(only=[1])
    world.granted[1], world.missing_reservations = {}, 1
    task = world.restored(1)
    assert task.doubtful
    assert task.books.incidents["internal_truncated"] == 1


def test_a_checkpoint_that_is_not_the_last_proves_no_loss() -> None:
    world = World(persist_after=0)
    world.send("milestones", good("milestones", 1, user_id=uid(7)))
    world.settle()
    before = list(world.progress[0])
    world.send("users", good("users", 7))
    world.settle()
    task = Task(0, world.rules)
    state = saved(world.rules, 0, {b"0": before[-1]}, {}, {})
    task.restore(state, world.moment)
    missed = task.compare_topics(world.identities, world.spans(0), outdated=True)
    assert (missed.parked, missed.surplus, missed.reservations) == ({}, 0, 0)
    assert task.doubtful
    assert task.books.incidents["internal_truncated"] == 1


def test_an_answered_request_is_not_repeated() -> None:
    world, sent = asking()
    world.settle()
    assert world.kind(sent) == "accepted"
    world.now += 10 * FIVE_MINUTES
    world.settle()
    assert len(requests(world)) == 1


def test_a_request_that_was_answered_while_a_full_decision_put_it_off_is_not_repeated() -> None:
    world, sent = asking()
    world.now += FIVE_MINUTES + 60_000
    task = world.tasks[0]
    assert task.has_to_ask_again(world.moment)
    (parked,) = task.unanswered
    world.settle()
    assert world.kind(sent) == "accepted"
    task.unanswered.append(parked)
    before = requests(world)
    world.round(only=[0])
    assert requests(world) == before
    assert not task.unanswered
