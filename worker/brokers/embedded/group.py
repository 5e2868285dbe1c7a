"""Membership of the embedded broker's groups: live members, and the partitions of each.

A member is a database row, which fixes its place in join order, and a file of its own in
`members/`. The member keeps the file locked, so others see at once that its process was killed.
It writes its steady clock into the file, so a frozen member counts as dead after the session
timeout. A heartbeat therefore costs no transaction.

Shares follow from the live rows alone, so all processes agree on them. For moments in which they
disagree, the fence of the committers protects the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

from worker.brokers.embedded.store import Connection, snapshot, transaction
from worker.brokers.embedded.topics import Catalogue
from worker.errors import BuddyError
from worker.stream import GroupMember

_DIGITS = 20
_NAME = re.compile(r"[0-9a-f]{32}")


class Groups:
    """The groups that this process is a member of."""

    def __init__(
        self,
        writing: Connection,
        reading: Connection,
        directory: Path,
        steady: Callable[[], int],
        session_ms: int,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._directory = directory / "members"
        self._steady = steady
        self._catalogue = Catalogue()
        self._session_ms = session_ms
        self._members: set[EmbeddedMember] = set()

    @property
    def joined(self) -> bool:
        """Whether this process is in any group."""
        return bool(self._members)

    async def join(self, group: str, topic: str) -> EmbeddedMember:
        """Add a new member at the end of the group. Raises `MissingTopic`."""
        await self._reading.run(_partitions, self._catalogue, topic)
        member = EmbeddedMember(self, group, topic)
        self._members.add(member)
        await self.register(member)
        return member

    async def register(self, member: EmbeddedMember) -> None:
        """Take a place at the end of the group."""
        await self._writing.run(_register, self._directory, member, self._steady())

    async def refresh(self, member: EmbeddedMember) -> tuple[list[str], int]:
        """The live members in join order, and the number of partitions that they share.

        Sends the heartbeat of `member` and removes dead members. Raises `MissingTopic`.
        """
        now = self._steady()
        live, dead = await self._reading.run(
            _look, self._directory, member, now, now - self._session_ms
        )
        if dead:
            await self._writing.run(_remove, self._directory, dead)
        return live, await self._reading.run(_partitions, self._catalogue, member.topic)

    async def members(self, group: str) -> list[GroupMember]:
        """The live members and their partitions; removes no dead member."""
        oldest = self._steady() - self._session_ms
        return await self._reading.run(_members, self._directory, self._catalogue, group, oldest)

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
            if member.seat is not None:  # without the lock, a row that is left counts as dead
                member.seat.release()


class EmbeddedMember:
    """Implements `contract.Member`."""

    def __init__(self, groups: Groups, group: str, topic: str) -> None:
        self.group = group
        self.topic = topic
        self.seat: Seat | None = None
        self._groups = groups

    async def assignment(self) -> frozenset[int]:
        """See `contract.Member.assignment`; a member that counts as dead joins again at the end."""
        live, partitions = await self._groups.refresh(self)
        if self.seat is None or self.seat.name not in live:
            await self._groups.register(self)
            live, partitions = await self._groups.refresh(self)
        if self.seat is None or self.seat.name not in live:
            return frozenset()  # it froze again in between
        return share(partitions, live.index(self.seat.name), len(live))

    async def close(self) -> None:
        """See `contract.Member.close`. Idempotent."""
        await self._groups.leave(self)


class Seat:
    """A member's file: locked while its process lives; it holds the time of the last heartbeat."""

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
        """Write a heartbeat at `now` for other processes to read."""
        os.pwrite(self._descriptor, b"%0*d" % (_DIGITS, now), 0)

    def release(self) -> None:
        """Unlock and remove the file. Idempotent. A file that cannot be removed counts as dead."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):  # the disk may be read-only by now
                self._path.unlink()


def share(partitions: int, rank: int, members: int) -> frozenset[int]:
    """The contiguous share of the member with this rank; a remainder goes to the first members."""
    size, spare = divmod(partitions, members)
    first = rank * size + min(rank, spare)
    return frozenset(range(first, first + size + (rank < spare)))


def _register(
    connection: sqlite3.Connection, directory: Path, member: EmbeddedMember, now: int
) -> None:
    if member.seat is not None:
        member.seat.release()
    directory.mkdir(mode=0o750, exist_ok=True)
    with transaction(connection):
        _sweep(connection, directory)
        seat = Seat(directory / uuid.uuid4().hex, now)
        # Set here, not by the caller: a cancelled caller would never learn of the open file.
        member.seat = seat
        connection.execute(
            "INSERT INTO members (consumer_group, topic, name) VALUES (?, ?, ?)",
            (member.group, member.topic, seat.name),
        )


def _look(
    connection: sqlite3.Connection, directory: Path, member: EmbeddedMember, now: int, oldest: int
) -> tuple[list[str], list[str]]:
    """The live members, and those that have died or sent no heartbeat since `oldest`."""
    if member.seat is not None:
        member.seat.beat(now)
    live: list[str] = []
    dead: list[str] = []
    for (name,) in connection.execute(
        "SELECT name FROM members WHERE consumer_group = ? AND topic = ? ORDER BY id",
        (member.group, member.topic),
    ).fetchall():
        beat = _beat_of(directory, name)
        (dead if beat is None or beat < oldest else live).append(name)
    return live, dead


def _members(
    connection: sqlite3.Connection,
    directory: Path,
    catalogue: Catalogue,
    group: str,
    oldest: int,
) -> list[GroupMember]:
    live: dict[str, list[str]] = {}
    with snapshot(connection):
        catalogue.refresh(connection)
        for topic, name in connection.execute(
            "SELECT topic, name FROM members WHERE consumer_group = ? ORDER BY id", (group,)
        ).fetchall():
            beat = _beat_of(directory, name)
            if beat is not None and beat >= oldest and catalogue.find(topic) is not None:
                live.setdefault(topic, []).append(name)
        return [
            GroupMember(name, share(catalogue.need(topic).topic.partitions, rank, len(names)))
            for topic, names in live.items()
            for rank, name in enumerate(names)
        ]


def _partitions(connection: sqlite3.Connection, catalogue: Catalogue, topic: str) -> int:
    with snapshot(connection):
        catalogue.refresh(connection)
        return catalogue.need(topic).topic.partitions


def _remove(connection: sqlite3.Connection, directory: Path, names: list[str]) -> None:
    """Remove members, so that others get their shares; a thawed member notices and rejoins."""
    with transaction(connection):
        connection.executemany("DELETE FROM members WHERE name = ?", [(name,) for name in names])
    for name in filter(_NAME.fullmatch, map(str, names)):
        (directory / name).unlink(missing_ok=True)


def _leave(connection: sqlite3.Connection, directory: Path, member: EmbeddedMember) -> None:
    if member.seat is not None:
        _remove(connection, directory, [member.seat.name])
        member.seat.release()


def _beat_of(directory: Path, name: object) -> int | None:
    """The last heartbeat of a member; None if it is dead or its name is damaged."""
    return _last_beat(directory / name) if isinstance(name, str) and _NAME.fullmatch(name) else None


def _last_beat(path: Path) -> int | None:
    """The time in a member's file, or None if its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock: two processes that check at once do not take each other for the member.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        beat = os.pread(descriptor, _DIGITS, 0)
        return int(beat) if beat.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def _sweep(connection: sqlite3.Connection, directory: Path) -> None:
    """Remove seats without a row: their processes died between two steps.

    What is not named like a seat is somebody else's: the directory may be a link.
    """
    known = {name for (name,) in connection.execute("SELECT name FROM members")}
    for path in directory.iterdir():
        is_seat = _NAME.fullmatch(path.name) is not None
        if is_seat and path.name not in known and _last_beat(path) is None:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
