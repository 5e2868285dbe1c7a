"""Who has which number: the group as the broker has it."""

from __future__ import annotations

from worker.stream import GroupMember


class Group:
    """Its members, in the order of their joining, and what belongs to whom."""

    def __init__(self, topic: str, numbers: int) -> None:
        self.topic = topic
        """Whose partition numbers are shared out."""
        self.members: list[object] = []
        self.owners: list[object | None] = [None] * numbers

    def resize(self, numbers: int) -> None:
        """The topic has been created anew, with so many partitions."""
        self.owners = [None] * numbers
        self.share()

    def join(self, member: object) -> None:
        """A member more: the numbers are shared out anew."""
        self.members.append(member)
        self.share()

    def leave(self, member: object) -> None:
        """A member less, be it because it has not been heard of."""
        if member in self.members:
            self.members.remove(member)
            self.share()

    def share(self) -> None:
        """Contiguous ranges, as equal as can be, in the order of the members."""
        count, numbers = len(self.members), len(self.owners)
        for number in range(numbers):
            self.owners[number] = self.members[number * count // numbers] if count else None

    def numbers(self, member: object) -> frozenset[int]:
        """Those that belong to a member."""
        return frozenset(n for n, owner in enumerate(self.owners) if owner is member)

    def described(self) -> list[GroupMember]:
        """The members, as others see them."""
        return [GroupMember(f"member-{id(m)}", self.numbers(m)) for m in self.members]
