"""Other programs in a group of ours. Any Kafka client may join any group."""

from __future__ import annotations

from collections.abc import Iterable

from worker.stream import GroupMember


def stranger_in(group: str, members: Iterable[GroupMember]) -> str | None:
    """One line about another program that holds partitions of the group; None if none does."""
    for member in sorted(members):
        if not member.ours and member.numbers:
            numbers = ", ".join(map(str, sorted(member.numbers)[:8]))
            return (
                f"{member.name}, another program, is in group {group} and keeps partitions"
                f" {numbers} from the services: stop that program, or give it a group of its own"
            )
    return None
