"""Faults planted on purpose, to see that the simulation would find them.

`python -m tests.proofs.simulation.planted [NAME ...] [--most SEEDS]` plays seeds until each is
found and says how many that took. Most are planted in what the engine stands on, so they stay what
they are whatever it looks like inside.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from unittest.mock import patch

import msgspec

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.connection import MemoryBroker, MemoryCommitter, MemoryReader
from tests.proofs.simulation.broker.log import Log
from tests.proofs.simulation.index import Disk
from tests.proofs.simulation.many import failure
from tests.proofs.simulation.plant import Plant, planter
from tests.proofs.simulation.planted_owners import OWNERS
from tests.proofs.simulation.schedule import Run
from worker.clock import Clock
from worker.core.addresses import Addresses
from worker.core.checkpoint import Checkpoint, Reached
from worker.core.frontier import Frontier
from worker.core.internal import read_reached as real_read_reached
from worker.core.known import IndexDelta
from worker.core.moments import Moment
from worker.core.parked import Parked, State
from worker.core.reading import Reading
from worker.errors import BrokerUnavailable
from worker.stream import Message, OffsetRange, Partition, ProducerRecord

FAULTS: Final[dict[str, Plant]] = {}
"""By name; each lasts as long as its context."""

_planted = planter(FAULTS)


# --- fences and transactions --------------------------------------------------------------------


@_planted
def fence_forgotten() -> Iterator[None]:
    """Whoever starts a committer leaves the earlier one alone."""
    real = Cluster.fence

    def fence(cluster: Cluster, name: str) -> int:
        writer = cluster._writers.get(name)
        return real(cluster, name) if writer is None else writer.epoch

    with patch.object(Cluster, "fence", fence):
        yield


@_planted
def open_transactions_overlooked() -> Iterator[None]:
    """What is still open counts as not there, instead of being waited for."""
    real = MemoryBroker.spans

    async def spans(
        self: MemoryBroker, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        return await real(self, partitions)

    with patch.object(MemoryBroker, "spans", spans):
        yield


@_planted
def senders_transactions_overlooked() -> Iterator[None]:
    """What was sent behind a sender's open transaction counts as not there."""
    real = MemoryBroker.spans

    async def spans(
        self: MemoryBroker, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        asked = list(partitions)
        inputs = [partition for partition in asked if ".in." in partition.topic]
        spans = await real(self, asked, uncommitted=uncommitted)
        return spans | await real(self, inputs)

    with patch.object(MemoryBroker, "spans", spans):
        yield


@_planted
def aborted_messages_are_read() -> Iterator[None]:
    """Readers see what did not take place."""

    def look(log: Log) -> list[Message | None]:
        log._decided += log.entries[len(log._decided) : log.stable]
        return log._decided

    with patch.object(Log, "_look", look):
        yield


@_planted
def rows_and_progress_apart() -> Iterator[None]:
    """Progress is committed first, and what else was decided in a transaction of its own."""
    real = MemoryCommitter._commit

    async def commit(
        self: MemoryCommitter, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        first = [m for m in messages if m.topic.endswith(".progress")]
        rest = [m for m in messages if not m.topic.endswith(".progress")]
        if first:
            await real(self, first, {})
        await self._network.hop()
        return await real(self, rest, offsets) if rest else []

    with patch.object(MemoryCommitter, "_commit", commit):
        yield


@_planted
def progress_without_its_rows() -> Iterator[None]:
    """A commit that holds several rows loses one of them."""
    real = MemoryCommitter._commit

    async def commit(self: MemoryCommitter, messages: Any, offsets: Any) -> list[tuple[int, int]]:
        rows = [m for m in messages if ".accepted." in m.topic]
        less = [m for m in messages if len(rows) < 2 or m is not rows[-1]]
        return await real(self, less, offsets)

    with patch.object(MemoryCommitter, "_commit", commit):
        yield


@_planted
def unknown_outcome_taken_for_failure() -> Iterator[None]:
    """A commit of which nobody knows whether it took place is made once more."""
    real = MemoryCommitter._commit

    async def commit(self: MemoryCommitter, messages: Any, offsets: Any) -> list[tuple[int, int]]:
        try:
            return await real(self, messages, offsets)
        except BrokerUnavailable:
            self._epoch = self._cluster.fence(self._name)
            return await real(self, messages, offsets)

    with patch.object(MemoryCommitter, "_commit", commit):
        yield


@_planted
def identities_never_change() -> Iterator[None]:
    """A topic that was created anew is taken for the old one."""
    real = MemoryBroker.identities

    async def identities(self: MemoryBroker, names: Iterable[str]) -> dict[str, str]:
        return {name: name.replace(".", "-") for name in await real(self, names)}

    with (
        patch.object(MemoryBroker, "identities", identities),
        patch("tests.proofs.simulation.internals.Internals.held", lambda *_: ()),
    ):
        yield


@_planted
def positions_ahead_of_what_was_given() -> Iterator[None]:
    """A read that was short moves on as if it had given everything."""
    real = MemoryReader._fetch

    async def fetch(self: MemoryReader, listened: Any, limit: int) -> list[Message]:
        messages = await real(self, listened, limit)
        for place in {Partition(m.topic, m.partition) for m in messages}:
            if self._cluster.logs[place].stable - self._positions[place] == 1:
                self._positions[place] += 1
        return messages

    with patch.object(MemoryReader, "_fetch", fetch):
        yield


# --- the index and the clocks --------------------------------------------------------------------


@_planted
def positions_of_the_index_without_its_rows() -> Iterator[None]:
    """What the index says it has read is kept when a worker is killed, and a row is not."""
    real = Disk.apply

    def apply(
        disk: Disk, messages: Sequence[Message], positions: Any, known: Any = None
    ) -> IndexDelta:
        return real(disk, messages[:-1] if len(messages) > 2 else messages, positions, known)

    with patch.object(Disk, "apply", apply):
        yield


@_planted
def waits_by_the_wall_clock() -> Iterator[None]:
    """Somebody sets the clock, and waits become longer or shorter."""

    def clock(wall: Callable[[], int], _steady: object) -> Clock:
        return Clock(wall, wall)

    with patch("tests.proofs.simulation.machine.Clock", clock):
        yield


@_planted
def restored_stamps_in_the_future() -> Iterator[None]:
    """What a worker with a wrong clock has noted is believed by the next one."""

    def restored(stamps: Sequence[int], now: Moment) -> list[Moment]:
        return [Moment(stamp, now.steady - (now.wall - stamp)) for stamp in stamps]

    with (
        patch("worker.core.reading.restored", restored),
        patch("worker.core.restoring.restored", restored),
    ):
        yield


# --- the core -------------------------------------------------------------------------------------


@_planted
def frontier_passed_too_early() -> Iterator[None]:
    """As soon as it is noted, whatever is still to be judged."""
    with patch.object(Frontier, "advance", lambda self, _judged: self._ends.clear() or []):
        yield


@_planted
def frontier_without_outcomes() -> Iterator[None]:
    """Once all is judged, whether or not the index shows it."""

    def follow(frontier: Frontier, _followed: object) -> None:
        frontier.passed = frontier._accepted_ends is not None

    with patch.object(Frontier, "follow", follow):
        yield


@_planted
def held_records_forgotten() -> Iterator[None]:
    """Whoever takes a task over does not read again what was held."""
    real = Reading.restore

    def restore(reading: Reading, progress: Checkpoint, now: Moment) -> None:
        real(reading, msgspec.structs.replace(progress, in_memory={}), now)

    with patch.object(Reading, "restore", restore):
        yield


@_planted
def judged_of_the_old_topic_believed() -> Iterator[None]:
    """A frontier counts what was judged of a topic that has been created anew since."""

    def read_reached(key: bytes, value: bytes, number: int) -> Reached | None:
        found = real_read_reached(key, value, number)
        return found and msgspec.structs.replace(found, topics={})

    with patch("worker.engine.index_updater.read_reached", read_reached):
        yield


@_planted
def places_begin_anew_with_a_topic() -> Iterator[None]:
    """Copies of the old topic's records are taken for those of the new one."""
    with patch.object(Reading, "ordinal", lambda _self, _name, offset: offset):
        yield


@_planted
def done_records_judged_again() -> Iterator[None]:
    """Where held records are read again, those between them are as well."""
    with patch.object(Reading, "undone", lambda _self, _entity, batch: batch):
        yield


@_planted
def accepted_without_a_grant() -> Iterator[None]:
    """The owner of an address grants it to whoever asks."""
    real = Addresses.reserve

    def reserve(addresses: Addresses, asked: Any, holders: Any) -> Any:
        addresses._reserved.pop(asked.address, None)
        return real(addresses, asked, _Nobody())

    with patch.object(Addresses, "reserve", reserve):
        yield


class _Nobody:
    def taken(self, _address: bytes, _user: bytes) -> bool:
        return False


@_planted
def settled_grant_forgotten_at_once() -> Iterator[None]:
    """Though the index may not show the row yet."""
    real = Addresses.release

    def release(addresses: Addresses, asked: Any) -> Any:
        left = real(addresses, asked)
        addresses._reserved = {a: r for a, r in addresses._reserved.items() if r.records}
        addresses._released = 0
        return left

    with patch.object(Addresses, "release", release):
        yield


@_planted
def nothing_is_contested() -> Iterator[None]:
    """The index is asked without looking whether it is behind."""
    with patch.object(Addresses, "contested", lambda *_: False):
        yield


@_planted
def grants_not_restored() -> Iterator[None]:
    """Whoever takes a task over has granted nothing, as far as it knows."""
    with patch.object(Addresses, "restore", lambda _self, _granted: None):
        yield


@_planted
def a_grant_covers_other_addresses() -> Iterator[None]:
    """Whatever address the next version of a user has, it takes the grant of the one before."""

    def covers(settled: Parked, following: Parked) -> bool:
        return settled.state is State.GRANTED and following.state is State.UNREQUESTED

    with patch("worker.core.task_round._covers", covers):
        yield


FAULTS.update(OWNERS)


def seeds_until_found(name: str, most: int) -> tuple[int, str] | None:
    """How many seeds it took until something was wrong, and what; None if it never was.

    A seed that fails without the fault as well tells nothing.
    """
    for seed in range(most):
        with FAULTS[name]():
            why = failure(Run(seed))
        if why is not None and failure(Run(seed)) is None:
            return seed + 1, why
    return None


def main() -> int:
    """Exit code 1 if any fault is not found."""
    parser = argparse.ArgumentParser(prog="tests.proofs.simulation.planted")
    parser.add_argument("names", nargs="*", default=list(FAULTS))
    parser.add_argument("--most", type=int, default=3_000)
    wanted = parser.parse_args()
    missed = 0
    for name in wanted.names:
        found = seeds_until_found(name, wanted.most)
        missed += found is None
        said = f"NOT FOUND in {wanted.most}" if found is None else f"{found[0]}: {found[1][:150]}"
        print(f"{name}: {said}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
