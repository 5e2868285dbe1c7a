"""Membership of the embedded broker's groups: who is alive, and who has which partitions.

A member is a row of the database (its place in the order of joining) and a file of its own in
`members/`: it keeps the file locked, so a killed process is seen dead at once, and writes its
clock into it, so a frozen one is seen dead after the session's time. A heartbeat so costs no
transaction. All who look agree, because the shares follow from the live rows alone; for the
moments in which they do not, there is the fence of the committers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

from worker.brokers.contract import GroupMember, Topic
from worker.brokers.embedded_store import Connection, transaction
from worker.errors import BuddyError

_DIGITS = 20


class Groups:
    """The groups that this process takes part in."""

    def __init__(
        self,
        writing: Connection,
        reading: Connection,
        directory: Path,
        clock: Callable[[], int],
        session_ms: int,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._directory = directory / "members"
        self._clock = clock
        self._session_ms = session_ms
        self._members: set[EmbeddedMember] = set()

    async def join(self, group: str, topic: Topic) -> EmbeddedMember:
        """A new member at the end of the group."""
        member = EmbeddedMember(self, group, topic)
        self._members.add(member)
        await self.register(member)
        return member

    async def register(self, member: EmbeddedMember) -> None:
        """Take a place at the end of the group."""
        await self._writing.run(_register, self._directory, member, self._clock())

    async def look(self, member: EmbeddedMember) -> list[str]:
        """The live members in order of joining, after a heartbeat; the dead are removed."""
        now = self._clock()
        live, dead = await self._reading.run(
            _look, self._directory, member, now, now - self._session_ms
        )
        if dead:
            await self._writing.run(_remove, self._directory, dead)
        return live

    async def members(self, group: str) -> list[GroupMember]:
        """The live members, and what is theirs; the dead stay where they are."""
        oldest = self._clock() - self._session_ms
        return await self._reading.run(_members, self._directory, group, oldest)

    async def leave(self, member: EmbeddedMember) -> None:
        """Give up the member's place at once."""
        if member in self._members:
            await self._writing.run(_leave, self._directory, member)
            self._members.discard(member)

    async def close(self) -> None:
        """Leave every group."""
        for member in tuple(self._members):
            with contextlib.suppress(BuddyError):
                await self.leave(member)
            if member.seat is not None:  # nobody sees the row any more: the lock has gone
                member.seat.release()


class EmbeddedMember:
    """See `contract.Member`."""

    def __init__(self, groups: Groups, group: str, topic: Topic) -> None:
        self.group = group
        self.topic = topic
        self.seat: Seat | None = None
        self._groups = groups

    async def assignment(self) -> frozenset[int]:
        """See `contract.Member.assignment`; a member taken for dead joins again at the end."""
        live = await self._groups.look(self)
        if self.seat is None or self.seat.name not in live:
            await self._groups.register(self)
            live = await self._groups.look(self)
        if self.seat is None or self.seat.name not in live:
            return frozenset()  # frozen once more in between
        return share(self.topic.partitions, live.index(self.seat.name), len(live))

    async def close(self) -> None:
        """See `contract.Member.close`; calling it again does nothing."""
        await self._groups.leave(self)


class Seat:
    """A member's file: locked while the process lives, holding the time of its last heartbeat."""

    def __init__(self, path: Path, now: int) -> None:
        self.name = path.name
        self._path = path
        self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            self.beat(now)
        except BaseException:
            self.release()
            raise

    def beat(self, now: int) -> None:
        """Write the time down for the others."""
        os.pwrite(self._descriptor, b"%0*d" % (_DIGITS, now), 0)

    def release(self) -> None:
        """Let go of the file and remove it; doing it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._path.unlink(missing_ok=True)


def share(partitions: int, place: int, members: int) -> frozenset[int]:
    """The contiguous share of the member at `place`; the first ones get one more, if need be."""
    size, spare = divmod(partitions, members)
    first = place * size + min(place, spare)
    return frozenset(range(first, first + size + (place < spare)))


def _register(
    connection: sqlite3.Connection, directory: Path, member: EmbeddedMember, now: int
) -> None:
    if member.seat is not None:
        member.seat.release()
    directory.mkdir(mode=0o750, exist_ok=True)
    with transaction(connection):
        _sweep(connection, directory)
        seat = Seat(directory / uuid.uuid4().hex, now)
        # Kept here, not by the caller: a cancelled caller would never learn of the open file.
        member.seat = seat
        connection.execute(
            "INSERT INTO members (consumer_group, topic, name) VALUES (?, ?, ?)",
            (member.group, member.topic.name, seat.name),
        )


def _look(
    connection: sqlite3.Connection, directory: Path, member: EmbeddedMember, now: int, oldest: int
) -> tuple[list[str], list[str]]:
    """Those who are alive, and those who have died or were not heard of since `oldest`."""
    if member.seat is not None:
        member.seat.beat(now)
    live: list[str] = []
    dead: list[str] = []
    for (name,) in connection.execute(
        "SELECT name FROM members WHERE consumer_group = ? AND topic = ? ORDER BY id",
        (member.group, member.topic.name),
    ).fetchall():
        beat = _last_beat(directory / name)
        (dead if beat is None or beat < oldest else live).append(name)
    return live, dead


def _members(
    connection: sqlite3.Connection, directory: Path, group: str, oldest: int
) -> list[GroupMember]:
    live: dict[tuple[str, int], list[str]] = {}
    for topic, partitions, name in connection.execute(
        "SELECT t.name, t.partitions, m.name FROM members m JOIN topics t ON t.name = m.topic "
        "WHERE m.consumer_group = ? ORDER BY m.id",
        (group,),
    ).fetchall():
        beat = _last_beat(directory / name)
        if beat is not None and beat >= oldest:
            live.setdefault((topic, partitions), []).append(name)
    return [
        GroupMember(name, share(partitions, place, len(names)))
        for (_, partitions), names in live.items()
        for place, name in enumerate(names)
    ]


def _remove(connection: sqlite3.Connection, directory: Path, names: list[str]) -> None:
    """Forget members, so that their shares go to the others; a thawed one will notice."""
    with transaction(connection):
        connection.executemany("DELETE FROM members WHERE name = ?", [(name,) for name in names])
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _leave(connection: sqlite3.Connection, directory: Path, member: EmbeddedMember) -> None:
    if member.seat is not None:
        _remove(connection, directory, [member.seat.name])
        member.seat.release()


def _last_beat(path: Path) -> int | None:
    """The time in a member's file, or None if its process has gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two who look at once do not take each other for the member.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.pread(descriptor, _DIGITS, 0) or 0)
    else:
        return None
    finally:
        os.close(descriptor)


def _sweep(connection: sqlite3.Connection, directory: Path) -> None:
    """Remove files that no member stands for: their processes died between two steps."""
    known = {name for (name,) in connection.execute("SELECT name FROM members")}
    for path in directory.iterdir():
        if path.name not in known and _last_beat(path) is None:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
