"""Reads from the embedded broker's log, and waits for the log to grow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from worker.brokers.embedded.damage import Damage
from worker.brokers.embedded.log import BATCH_BYTES, FETCH_BYTES, Chunk
from worker.errors import BrokerUnavailable, BuddyError
from worker.stream import Message, Partition

Fetch = Callable[[Sequence[tuple[Partition, int]], int, int], Awaitable[list[Chunk]]]

FIRST_PAUSE = 0.002
LAST_PAUSE = 0.02
"""Seconds between two polls of the log while readers wait; the pause grows from first to last."""


class LogWatch:
    """Wakes waiting readers when the log grows, whichever process wrote.

    This process reports its own writes by `grown`. For other processes, `LogWatch` polls a number
    that SQLite changes with every commit, and polls only while a reader waits.
    """

    def __init__(self, version: Callable[[], Awaitable[int]]) -> None:
        self.generation = 0
        self._version = version
        self._last = -1
        self._waiting: set[asyncio.Future[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def grown(self) -> None:
        """The log has grown: wake all waiting readers."""
        self.generation += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seen: int, seconds: float) -> bool:
        """Wait up to `seconds` for a generation newer than `seen`; return whether there is one.

        Raises `BrokerUnavailable` if the broker is closed meanwhile, or the error of a poll.
        """
        if self._closed:
            raise BrokerUnavailable("The broker was closed while a reader waited.")
        if self.generation != seen or seconds <= 0:
            return self.generation != seen
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
            for finished in done:
                finished.result()
            return bool(done)
        finally:
            self._waiting.discard(future)

    async def close(self) -> None:
        """Stop polling, and fail all waits with `BrokerUnavailable`."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        self._fail(BrokerUnavailable("The broker was closed while a reader waited."))

    async def _look(self) -> None:
        pause = FIRST_PAUSE
        while self._waiting:
            await asyncio.sleep(pause)
            try:
                version = await self._version()
            except BuddyError as error:
                self._fail(error)
                return
            if version == self._last:
                pause = min(pause * 1.5, LAST_PAUSE)
            else:
                self._last, pause = version, FIRST_PAUSE
                self.grown()

    def _fail(self, error: BuddyError) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)


class _Course:
    """A reader's position in one partition, and the messages fetched but not yet returned."""

    def __init__(self, position: int) -> None:
        self.messages: list[Message] = []
        self.taken = 0
        self.after = self.end = position
        self.expired = 0
        self.truncated = 0
        self.skipped = 0
        self.damage: Damage | None = None

    def position(self) -> int:
        return self.messages[self.taken].offset if self.left() else self.after

    def left(self) -> int:
        return len(self.messages) - self.taken

    def accept(self, chunk: Chunk) -> None:
        self.messages, self.taken = chunk.messages, 0
        self.after, self.end = chunk.position, chunk.end
        self.expired += chunk.expired
        self.truncated += chunk.truncated
        self.skipped += chunk.skipped
        self.damage = chunk.damage

    def take(self, limit: int) -> list[Message]:
        some = self.messages[self.taken : self.taken + limit]
        self.taken += len(some)
        if not self.left():
            self.messages, self.taken = [], 0
        return some


class EmbeddedReader:
    """Implements `contract.Reader`. `closed` is called once, when the reader is closed."""

    def __init__(
        self, fetch: Fetch, watch: LogWatch, closed: Callable[[EmbeddedReader], None]
    ) -> None:
        self._fetch = fetch
        self._watch = watch
        self._closed: Callable[[EmbeddedReader], None] | None = closed
        self._courses: dict[Partition, _Course] = {}
        self._turn = 0

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """See `contract.Reader.assign`; unmoved partitions keep their fetched messages."""
        courses = {}
        for partition, position in positions.items():
            course = self._courses.get(partition)
            if course is None or course.position() != position:
                renewed = _Course(position)
                if course is not None:
                    renewed.expired, renewed.skipped = course.expired, course.skipped
                course = renewed
            courses[partition] = course
        self._courses = courses

    async def read(
        self, limit: int, timeout: float, paused: Collection[Partition] = ()
    ) -> list[Message]:
        """See `contract.Reader.read`; the partition that is read first rotates."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._turn += 1
        while True:
            if self._closed is None:
                raise BrokerUnavailable("The reader is closed.")
            generation = self._watch.generation
            assigned = self._courses
            active = self._in_turn(paused)
            await self._fill(active, limit)
            if self._courses is not assigned:
                continue  # reassigned meanwhile: start over, since nothing was returned yet
            if messages := _take(active, limit):
                return messages
            if not await self._watch.wait(generation, deadline - loop.time()):
                return []

    def position(self, partition: Partition) -> int:
        """See `contract.Reader.position`."""
        return self._courses[partition].position()

    def lag(self, partition: Partition) -> int:
        """See `contract.Reader.lag`."""
        course = self._courses[partition]
        return max(0, course.end - course.position())

    def expired(self) -> dict[Partition, int]:
        """See `contract.Reader.expired`."""
        found = {}
        for partition, course in self._courses.items():
            if course.expired:
                found[partition] = course.expired
                course.expired = 0
        return found

    def truncated(self) -> dict[Partition, int]:
        """See `contract.Reader.truncated`."""
        found = {}
        for partition, course in self._courses.items():
            if course.truncated:
                found[partition] = course.truncated
                course.truncated = 0
        return found

    def skipped(self) -> dict[Partition, int]:
        """See `contract.Reader.skipped`."""
        found = {}
        for partition, course in self._courses.items():
            if course.skipped:
                found[partition] = course.skipped
                course.skipped = 0
        return found

    def damaged(self) -> dict[Partition, str]:
        """See `contract.Reader.damaged`."""
        return {
            partition: course.damage.line()
            for partition, course in self._courses.items()
            if course.damage is not None and not course.left()
        }

    async def close(self) -> None:
        """Drop the assignment and fetched messages; a later read raises `BrokerUnavailable`."""
        self._courses = {}
        if self._closed is not None:
            self._closed(self)
            self._closed = None

    def _in_turn(self, paused: Collection[Partition]) -> list[tuple[Partition, _Course]]:
        active = [item for item in self._courses.items() if item[0] not in paused]
        first = self._turn % len(active) if active else 0
        return active[first:] + active[:first]

    async def _fill(self, active: list[tuple[Partition, _Course]], limit: int) -> None:
        lacking = limit - sum(course.left() for _, course in active)
        empty = [(partition, course) for partition, course in active if not course.left()]
        if lacking <= 0 or not empty:
            return
        before = [course.after for _, course in empty]
        wanted = [(partition, course.after) for partition, course in empty]
        # A partition's messages go to one task, which has a share of the memory. Back-pressure
        # pauses the partition only after the task has the messages, so each fetch is limited.
        share = max(BATCH_BYTES, FETCH_BYTES // len(self._courses))
        chunks = await self._fetch(wanted, lacking, share)
        for (_, course), position, chunk in zip(empty, before, chunks, strict=False):
            # Two concurrent reads may fetch the same messages: accept them only once.
            if course.after == position and not course.left():
                course.accept(chunk)


def _take(active: list[tuple[Partition, _Course]], limit: int) -> list[Message]:
    messages: list[Message] = []
    for _, course in active:
        if len(messages) >= limit:
            break
        if course.left():
            messages += course.take(limit - len(messages))
    return messages
