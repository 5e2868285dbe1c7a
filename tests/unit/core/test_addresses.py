"""One address, one user: in a batch, across tasks, and when users move."""

from __future__ import annotations

import pytest

from tests.unit.core_kit import Crash, World, good, owned, uid
from worker.core.addresses import ReservationRequest
from worker.core.internal import read_request
from worker.core.known import address_digest
from worker.core.round import Round, TaskBatch
from worker.core.topics import REQUESTS
from worker.stream import Partition


def user(world: World, number: int, email: str, partition: int = 0) -> str:
    return world.send("users", good("users", number, email=email), partition=partition)


def kinds(world: World, *sent: str) -> list[str]:
    return [world.kind(one) for one in sent]


def codes(world: World, sent: str) -> tuple[str, ...]:
    outcome = world.outcome(sent)
    assert outcome is not None
    return outcome.codes


def holders(world: World, email: str) -> set[bytes]:
    world.follow()
    return set(world.index.holders(address_digest(email)))


def test_of_two_users_with_one_address_in_a_batch_the_first_has_it() -> None:
    world = World()
    first = user(world, 1, "a@example.org")
    second = user(world, 2, "A@Example.ORG")
    world.settle()
    assert kinds(world, first, second) == ["accepted", "rejected"]
    assert codes(world, second) == ("email_lowercased", "duplicate_email")


@pytest.mark.parametrize("owner", [0, 1, 2])
def test_of_two_users_with_one_address_in_two_tasks_at_once_one_has_it(owner: int) -> None:
    world = World(partitions=3)
    email = owned(owner, 3)
    sent = [user(world, 1, email, 0), user(world, 2, email, 1)]
    world.settle()
    assert sorted(kinds(world, *sent)) == ["accepted", "rejected"]
    assert [codes(world, one) for one in sent].count(("duplicate_email",)) == 1
    assert len(holders(world, email)) == 1
    world.finish()


def claims(world: World, owner: int) -> int:
    log = world.inputs[Partition(world.names.input(REQUESTS), owner)]
    return sum(
        isinstance(read_request(m.value, owner, world.count), ReservationRequest) for m in log
    )


def test_one_claim_covers_a_run_of_versions_with_the_same_address() -> None:
    world = World(partitions=2)
    old, new = owned(1, 2), owned(1, 2, 1)
    run = [user(world, 1, old) for _ in range(5)]
    moved = [user(world, 1, new) for _ in range(3)]
    for task in (0, 1, 0):  # asked, granted, accepted
        world.round(only=[task])
    assert kinds(world, *run, *moved) == ["accepted"] * 5 + ["open"] * 3
    world.settle()
    assert kinds(world, *moved) == ["accepted"] * 3
    assert claims(world, 1) == 2
    assert holders(world, old) == set()
    world.finish()


def test_a_deletion_among_the_versions_ends_the_run() -> None:
    world = World(partitions=2)
    email = owned(1, 2)
    before = user(world, 1, email)
    world.delete("users", uid(1), partition=0)
    after = user(world, 1, email)
    world.settle()
    assert kinds(world, before, after) == ["accepted"] * 2
    assert claims(world, 1) == 2
    world.finish()


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_to_claim_wins(first: int) -> None:
    world = World(partitions=3)
    email = owned(2, 3)
    sent = [user(world, 1, email, 0), user(world, 2, email, 1)]
    world.round(only=[first])
    world.round(only=[1 - first])
    world.settle()
    assert world.kind(sent[first]) == "accepted"
    assert codes(world, sent[1 - first]) == ("duplicate_email",)


def test_it_is_judged_without_waiting_for_the_grace() -> None:
    world = World(partitions=2)
    email = owned(1, 2)
    user(world, 1, email, 0)
    world.settle()
    late = user(world, 2, email, 0)
    world.settle()  # the clock stands
    assert codes(world, late) == ("duplicate_email",)


@pytest.mark.parametrize("owner", [0, 1])
def test_an_update_to_another_address_frees_the_old_one(owner: int) -> None:
    world = World(partitions=2)
    old, new = owned(owner, 2), owned(owner, 2, 1)
    user(world, 1, old)
    world.settle()
    moved = user(world, 1, new)
    world.settle()
    taker = user(world, 2, old, 1)
    world.settle()
    assert kinds(world, moved, taker) == ["accepted", "accepted"]
    world.finish()


def test_within_one_batch_an_update_frees_the_old_address_for_the_same_task() -> None:
    world = World()
    user(world, 1, "a@example.org")
    world.settle()
    moved = user(world, 1, "b@example.org")
    taker = user(world, 2, "a@example.org")
    world.round()
    assert kinds(world, moved, taker) == ["accepted", "accepted"]


def test_within_one_batch_an_address_given_and_left_is_free_again() -> None:
    world = World()
    sent = [
        user(world, 1, "a@example.org"),
        user(world, 1, "b@example.org"),
        user(world, 2, "a@example.org"),
        user(world, 1, "a@example.org"),
        user(world, 3, "b@example.org"),
    ]
    world.round()
    assert kinds(world, *sent) == ["accepted", "accepted", "accepted", "rejected", "rejected"]
    assert holders(world, "a@example.org") == {bytes.fromhex(uid(2).replace("-", ""))}


def test_a_deletion_frees_the_address() -> None:
    world = World(partitions=2)
    email = owned(1, 2)
    user(world, 1, email, 0)
    world.settle()
    world.delete("users", uid(1), partition=0)
    world.settle()
    taker = user(world, 2, email, 1)
    world.settle()
    assert world.kind(taker) == "accepted"


def test_within_one_batch_a_deletion_frees_the_address_for_the_same_task() -> None:
    world = World()
    user(world, 1, "a@example.org")
    world.delete("users", uid(1))
    taker = user(world, 2, "a@example.org")
    back = user(world, 1, "a@example.org")
    world.round()
    assert kinds(world, taker, back) == ["accepted", "rejected"]


def test_a_rejected_update_keeps_the_address_of_the_earlier_row() -> None:
    world = World()
    user(world, 1, "a@example.org")
    user(world, 2, "b@example.org")
    world.settle()
    refused = user(world, 1, "b@example.org")
    other = user(world, 3, "a@example.org")
    world.settle()
    assert kinds(world, refused, other) == ["rejected", "rejected"]
    row = world.row("users", uid(1))
    assert row is not None
    assert row["email"] == "a@example.org"


def test_a_user_may_send_its_own_address_again() -> None:
    world = World(partitions=2)
    email = owned(1, 2)
    sent = [user(world, 1, email) for _ in range(3)]
    world.settle()
    sent.append(user(world, 1, email))
    world.settle()
    assert kinds(world, *sent) == ["accepted"] * 4
    world.finish()


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_direct_swap_is_refused_both_ways_and_one_by_a_third_address_goes(
    partitions: int,
) -> None:
    world = World(partitions=partitions)
    one, two = partitions - 1, 0
    user(world, 1, "a@example.org", one)
    user(world, 2, "b@example.org", two)
    world.settle()
    swap = [user(world, 1, "b@example.org", one), user(world, 2, "a@example.org", two)]
    world.settle()
    assert kinds(world, *swap) == ["rejected", "rejected"]
    for number, email, place in (
        (1, "c@example.org", one),
        (2, "a@example.org", two),
        (1, "b@example.org", one),
    ):
        sent = user(world, number, email, place)
        world.settle()
        assert world.kind(sent) == "accepted"


def test_faults_of_its_own_claim_no_address() -> None:
    world = World()
    world.send("users", good("users", 1, email="a@example.org", role="king"))
    second = user(world, 2, "a@example.org")
    world.settle()
    assert world.kind(second) == "accepted"


def test_what_follows_a_user_that_waits_for_its_address_queues_behind_it() -> None:
    world = World(partitions=2)
    first = user(world, 1, owned(1, 2))
    second = user(world, 1, owned(0, 2))
    deletion = world.delete("users", uid(1), partition=0)
    world.round(only=[0])
    world.round(only=[0])
    assert kinds(world, first, second, deletion) == ["open"] * 3
    world.settle()
    assert kinds(world, first, second, deletion) == ["accepted", "accepted", "deleted"]
    world.finish()


def test_a_user_that_waits_for_its_address_is_not_judged() -> None:
    world = World(partitions=2)
    user(world, 1, owned(0, 2))
    user(world, 2, owned(1, 2))
    user(world, 3, owned(0, 2, 1))
    world.round(only=[0])
    assert world.judged(0)["users"] == 1
    world.settle()
    assert world.judged(0)["users"] == 3


@pytest.mark.parametrize("crash", ["before commit", "after commit"])
@pytest.mark.parametrize("task", [0, 1, 2])
@pytest.mark.parametrize("when", range(5))
def test_a_crash_at_any_moment_leaves_one_holder_and_one_outcome_each(
    crash: Crash, task: int, when: int
) -> None:
    world = World(partitions=3)
    email = owned(1, 3)
    sent = [user(world, 1, email, 0), user(world, 2, email, 2), user(world, 3, email, 1)]
    for moment in range(5):
        world.round(crash={task: crash} if moment == when else None)
    world.settle()
    assert sorted(kinds(world, *sent)) == ["accepted", "rejected", "rejected"]
    assert len(holders(world, email)) == 1
    world.finish()


def test_an_answer_from_before_a_restart_counts() -> None:
    world = World(partitions=3)
    email = owned(1, 3)
    user(world, 9, email, 1)
    world.settle()
    first = user(world, 1, email, 0)
    world.round(only=[0])  # claims
    world.round(only=[1])  # refuses, since 9 holds it; nobody has read that yet
    world.tasks[0] = world.restored(0)
    world.delete("users", uid(9), partition=1)
    world.round(only=[1])
    world.round(0, only=[0])  # has claimed, and does not ask again
    late = user(world, 2, email, 2)
    world.settle()
    assert kinds(world, first, late) == ["rejected", "accepted"]
    assert holders(world, email) == {bytes.fromhex(uid(2).replace("-", ""))}


def test_what_queued_behind_a_claim_asks_for_its_own_address_after_a_restart() -> None:
    world = World(partitions=2)
    first = user(world, 1, owned(1, 2))
    second = user(world, 1, owned(1, 2, 1))
    world.round(only=[0])  # the first claims, the second queues behind it
    world.tasks[0] = world.restored(0)
    world.settle()
    assert kinds(world, first, second) == ["accepted", "accepted"]
    world.finish()


def sync_of(world: World, number: int = 0) -> bool:
    """Whether the next batch of a task has to be synchronised."""
    task = world.tasks[number]
    batch = TaskBatch(*world._read(task, None))
    return Round({number: task}, {number: batch}, world.recent(number)).needs_current_index(
        world.moment
    )


def test_an_address_that_nobody_else_is_known_to_hold_waits_for_no_index() -> None:
    world = World()
    world.settle()
    user(world, 1, "a@example.org")
    assert not sync_of(world)
    world.round(lag=True)
    user(world, 1, "a@example.org")  # an update, before the index shows the row
    user(world, 2, "b@example.org")
    assert not sync_of(world)
    world.settle()
    assert holders(world, "a@example.org") == {bytes.fromhex(uid(1).replace("-", ""))}


def test_an_address_whose_row_the_index_does_not_show_yet_is_taken() -> None:
    world = World()
    world.settle()
    first = user(world, 1, "a@example.org")
    world.round(lag=True)
    assert not world.index.holders(address_digest("a@example.org"))
    second = user(world, 2, "a@example.org")
    assert sync_of(world)
    world.round(lag=True)
    assert kinds(world, first, second) == ["accepted", "rejected"]


def test_an_address_that_was_given_up_is_free_though_the_index_shows_the_old_row() -> None:
    world = World()
    user(world, 1, "a@example.org")
    world.settle()
    user(world, 1, "b@example.org")
    world.round(lag=True)
    taker = user(world, 2, "a@example.org")
    assert not sync_of(world), "the worker knows its own rows"
    world.round(lag=True)
    assert world.kind(taker) == "accepted"
    world.settle()
    assert holders(world, "a@example.org") == {bytes.fromhex(uid(2).replace("-", ""))}


def test_another_worker_waits_for_its_index_before_it_gives_away_what_was_given_up() -> None:
    world = World(partitions=2)
    first, second = owned(1, 2), owned(1, 2, 1)
    user(world, 1, first)
    world.settle()
    user(world, 1, second)
    for only in (0, 1, 0, 1):  # claim, grant, row, settled
        world.round(only=[only], lag=True)
    taker = user(world, 2, first, 1)
    assert sync_of(world, 1)
    world.round(only=[1], lag=True)
    assert world.kind(taker) == "accepted"


@pytest.mark.parametrize("moved", [False, True])
def test_a_settled_grant_holds_the_address_until_the_index_shows_its_row(moved: bool) -> None:
    world = World(partitions=2)
    email = owned(1, 2)
    world.settle()
    first = user(world, 1, email, 0)
    for only in (0, 1, 0):  # claim, grant, row
        world.round(only=[only], lag=True)
    if moved:
        user(world, 1, owned(0, 2), 0)
        world.round(only=[0], lag=True)
    world.round(only=[1], lag=True)  # settled
    assert not world.granted[1]
    assert not world.index.holders(address_digest(email))
    second = user(world, 2, email, 1)
    world.round(only=[1], lag=True)
    assert kinds(world, first, second) == ["accepted", "accepted" if moved else "rejected"]
    world.settle()
    assert len(holders(world, email)) == 1


def test_what_the_index_may_not_show_is_not_remembered_without_end() -> None:
    world = World()
    world.settle()
    for number in range(1, 4_001):
        user(world, number, f"a{number}@example.org")
        if number % 500 == 0:
            world.round(lag=True)
            assert len(world.tasks[0].addresses._reserved) <= 2_500
    user(world, 5_000, "a1@example.org")
    world.settle()
    assert len(world.index.holders(address_digest("a1@example.org"))) == 1
