"""Who was known when, and who held which address, as the accepted topics tell by append time.

One broker stamps all of it, so times of different partitions compare. Within one transaction (a
round of a worker) the order of the stamps says nothing. Its messages bear one time of the verdict,
and count as simultaneous.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final, NamedTuple

LONGEST_ROUND: Final = 20_000
"""Milliseconds; a transaction lives 15 s at most."""

SLACK: Final = 2_000
MARGIN: Final = 50
"""Milliseconds by which a reference must have been in time before its orphan is a violation."""

FOR_EVER: Final = 1 << 62


class Version(NamedTuple):
    """An accepted row or deletion. Times in milliseconds: of its input, and of itself."""

    arrived: int
    accepted: int
    round: str
    """The time of its verdict, as its header says: that of its whole round."""
    alive: bool
    address: str | None = None


class History:
    """The accepted versions of each key of one entity, in their order."""

    def __init__(self) -> None:
        self._versions: defaultdict[bytes, list[Version]] = defaultdict(list)

    def add(self, key: bytes, version: Version) -> None:
        """Note the next version of a key."""
        self._versions[key].append(version)

    def alive(self, id_: str) -> bool:
        """Whether the latest version is a row."""
        versions = self._versions.get(id_.encode())
        return bool(versions) and versions is not None and versions[-1].alive

    def ever(self, id_: str) -> bool:
        """Whether there ever was a row."""
        return any(v.alive for v in self._versions.get(id_.encode(), ()))

    def known_before(self, id_: str, moment: int, round_: str) -> bool:
        """Whether a row had been accepted by then, or in that round."""
        return any(
            v.alive and (v.accepted <= moment or is_one(v.round, round_))
            for v in self._versions.get(id_.encode(), ())
        )

    def gone_since(self, id_: str, moment: int, until: int) -> bool:
        """Whether it had been deleted by `moment` and not returned by `until`."""
        versions = self._versions.get(id_.encode(), ())
        before = [v for v in versions if v.accepted <= moment]
        between = [v for v in versions if moment < v.accepted <= until + LONGEST_ROUND and v.alive]
        return bool(before) and not before[-1].alive and not between

    def wrongly_missed(self, id_: str, deadline: int, judged: int, round_: str) -> Version | None:
        """The version because of which it was no orphan when `judged`, if any.

        docs/contract.md, "References": one whose input had come by the
        deadline, and which was not deleted before the verdict.
        That it was accepted only after the verdict is no excuse: the verdict had to wait for it.
        """
        versions = self._versions.get(id_.encode(), [])
        for place, version in enumerate(versions):
            if not version.alive or version.arrived > deadline - MARGIN:
                continue
            gone = next((v for v in versions[place + 1 :] if not v.alive), None)
            if gone is not None and is_one(gone.round, round_):
                continue
            slack = SLACK
            if gone is None or gone.accepted > max(judged, version.accepted) + slack:
                return version
        return None

    def items(self) -> Iterator[tuple[bytes, list[Version]]]:
        """Every key with its versions."""
        yield from self._versions.items()


class Holding(NamedTuple):
    """A user's hold on an address, from one append time up to, not including, another.

    `claimed` is when the record arrived that asked for it: from then on it may have been granted,
    however long the row took.
    """

    start: int
    end: int
    user: str
    claimed: int
    begun: str = ""
    ended: str = ""
    """The rounds of its first row, and of what ended it."""


class Addresses:
    """Who held which address when."""

    def __init__(self, users: History) -> None:
        self._holdings: defaultdict[str, list[Holding]] = defaultdict(list)
        for key, versions in users.items():
            self._note(key.decode(), versions)
        for holdings in self._holdings.values():
            holdings.sort()

    def holders_at_the_end(self) -> Iterator[tuple[str, list[str]]]:
        """Addresses that more than one user holds in the latest rows."""
        for address, holdings in self._holdings.items():
            last = [h.user for h in holdings if h.end == FOR_EVER]
            if len(last) > 1:
                yield address, last

    def overlaps(self) -> Iterator[tuple[str, Holding, Holding]]:
        """Pairs of users who held an address at one moment."""
        for address, holdings in self._holdings.items():
            latest = holdings[0]
            for holding in holdings[1:]:
                handed_over = is_one(holding.begun, latest.ended) or is_one(
                    latest.begun, holding.ended
                )
                if holding.user != latest.user and holding.start < latest.end and not handed_over:
                    yield address, latest, holding
                if holding.end > latest.end:
                    latest = holding

    def held_by_another(self, address: str, user: str, start: int, end: int) -> bool:
        """Whether another held it, or had asked for it first, at some moment from start to end."""
        holdings = self._holdings.get(address, [])
        return any(h.user != user and h.end >= start and h.claimed <= end for h in holdings)

    def _note(self, user: str, versions: list[Version]) -> None:
        since = claimed = 0
        begun = ""
        held: str | None = None
        for version in versions:
            if version.address == held:
                continue
            if held is not None:
                self._holdings[held].append(
                    Holding(since, version.accepted, user, claimed, begun, version.round)
                )
            held, since, claimed = version.address, version.accepted, version.arrived
            begun = version.round
        if held is not None:
            self._holdings[held].append(Holding(since, FOR_EVER, user, claimed, begun))


def is_one(first: str, second: str) -> bool:
    """Whether these are one round; unknown ones are not."""
    return bool(first) and first == second
