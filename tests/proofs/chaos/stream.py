"""The stream of records: what happens in a programme, and everything that makes it hard to judge.

References that come seconds late or never, updates, deletions (also of what others refer to, and
then it returns), records that queue behind a parked one of their key, errors in own fields, and,
where wanted, several users who claim one address at the same moment.
"""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.proofs.chaos.entities import key_of
from tests.proofs.chaos.records import OWN_ERRORS, Fields, Records

POOL: Final = 4_000
"""Rows that later ones refer to, by entity: bounds the memory, however long the stream."""

EXPECTED: Final = "chaos_expects"
"""A field that the specification does not know: the code that the record must be rejected by."""


class Sent(NamedTuple):
    """A record or, without a value, a deletion."""

    entity: str
    key: bytes
    value: bytes | None


class _Pool:
    """Rows taken to exist; when it is full, a new one takes the place of another."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        self._items: list[Fields] = []

    def add(self, item: Fields) -> None:
        if len(self._items) < POOL:
            self._items.append(item)
        else:
            self._items[self._random.randrange(POOL)] = item

    def any(self) -> Fields:
        # Of the recent ones more often: their verdicts are the freshest.
        if self._random.random() < 0.5:
            return self._items[-1 - self._random.randrange(min(100, len(self._items)))]
        return self._random.choice(self._items)

    def take(self) -> Fields:
        item = self._items.pop(self._random.randrange(len(self._items)))
        if not self._items:
            self._items.append(item)
        return item


class Stream:
    """A seeded source of records: `take` some for the present moment, `rest` at the end."""

    def __init__(self, seed: int, *, grace: float, contested: bool) -> None:
        self._random = random.Random(seed)
        self._records = Records(self._random)
        self._grace = grace
        self._due: list[tuple[float, int, Sent]] = []
        self._ready: list[Sent] = []
        self._numbers = 0
        self._now = 0.0
        self._users = _Pool(self._random)
        self._matches = _Pool(self._random)
        self._others = _Pool(self._random)
        scenes: dict[Callable[[], None], float] = {
            self._new_user: 16,
            self._new_match: 9,
            self._new_other: 40,
            self._update: 16,
            self._update_user: 5,
            self._delete_other: 2,
            self._delete_user: 0.6,
            self._delete_match: 0.6,
            self._late_user: 3,
            self._late_match: 3,
            self._late_chain: 2,
            self._never: 2,
            self._queue: 1,
            self._own_error: 2,
        }
        if contested:
            scenes |= {self._claim: 2, self._swap: 1, self._hand_over: 1}
        self._scenes = list(scenes)
        self._weights = list(scenes.values())
        for _ in range(20):
            self._new_user()
        for _ in range(10):
            self._new_match()
        self._new_other()

    def take(self, now: float, count: int) -> list[Sent]:
        """About so many records, those first whose time has come."""
        self._now = now
        taken, self._ready = self._ready, []
        while self._due and self._due[0][0] <= now:
            taken.append(heapq.heappop(self._due)[2])
        while len(taken) + len(self._ready) < count:
            self._random.choices(self._scenes, self._weights)[0]()
        taken += self._ready
        self._ready = []
        return taken

    def rest(self) -> list[Sent]:
        """Everything that was to be sent later."""
        late = [sent for _, _, sent in sorted(self._due)]
        self._due = []
        return late

    # --- plain --------------------------------------------------------------------------------

    def _new_user(self) -> None:
        user = self._records.user(self._records.id(), self._address())
        self._users.add(user)
        self._send("users", user)

    def _new_match(self) -> None:
        match = self._records.match(self._records.id(), self._user(), self._user())
        self._matches.add(match)
        self._send("matches", match)

    def _new_other(self) -> None:
        entity, record = self._other(self._user(), self._match())
        self._others.add({"entity": entity, "record": record})
        self._send(entity, record)

    def _update(self) -> None:
        for _ in range(self._random.choice((1, 1, 2, 3))):
            entity, record = self._existing()
            self._send(entity, self._records.update(entity, record))

    def _update_user(self) -> None:
        user = self._users.any()
        if self._random.random() < 0.3:
            user["email"] = self._address()
        self._send("users", self._records.update("users", user))

    def _delete_other(self) -> None:
        if self._random.random() < 0.1:  # of what has never been
            self._delete("checkins", self._records.id())
            return
        item = self._others.take()
        self._delete(item["entity"], key_of(item["entity"], item["record"]))
        if self._random.random() < 0.5:
            again = self._records.update(item["entity"], item["record"])
            self._later(item["entity"], again, self._soon())

    def _delete_user(self) -> None:
        user = self._users.take()
        self._delete("users", user["id"])
        if self._random.random() < 0.5:  # it returns, and some have asked for it meanwhile
            for _ in range(3):
                entity, record = self._other(user["id"], self._match())
                self._later(entity, record, self._soon())
            self._later("users", self._records.update("users", user), self._soon())

    def _delete_match(self) -> None:
        match = self._matches.take()
        self._delete("matches", match["match_id"])
        if self._random.random() < 0.5:
            self._later("checkins", self._records.checkin(match["match_id"]), self._soon())
            self._later("matches", self._records.update("matches", match), self._soon())

    # --- hard to judge ------------------------------------------------------------------------

    def _late_user(self) -> None:
        user = self._records.user(self._records.id(), self._address())
        for _ in range(self._random.randint(1, 4)):
            self._send(*self._other(user["id"], self._match()))
        self._later("users", user, self._lateness())

    def _late_match(self) -> None:
        match = self._records.match(self._records.id(), self._user(), self._user())
        for _ in range(self._random.randint(1, 3)):
            self._send(*self._other(self._user(), match["match_id"]))
        self._later("matches", match, self._lateness())

    def _late_chain(self) -> None:
        user = self._records.user(self._records.id(), self._address())
        match = self._records.match(self._records.id(), user["id"], self._user())
        self._send("checkins", self._records.checkin(match["match_id"]))
        self._later("feedback", self._records.feedback(match["match_id"]), 0.1)
        self._later("matches", match, self._lateness())
        self._later("users", user, self._lateness())

    def _never(self) -> None:
        self._send(*self._other(self._records.id(), self._match()))
        self._send(*self._other(self._user(), self._records.id()))
        lost = self._records.match(self._records.id(), self._records.id(), self._user())
        self._send("matches", lost)
        self._later("checkins", self._records.checkin(lost["match_id"]), self._soon())

    def _queue(self) -> None:
        """Later versions and a deletion behind a parked record of their key."""
        user = self._records.user(self._records.id(), self._address())
        record = self._records.milestone(user["id"])
        self._send("milestones", record)
        for _ in range(self._random.randint(1, 4)):
            self._later("milestones", self._records.update("milestones", record), self._soon())
        if self._random.random() < 0.5:
            self._send_later(
                Sent("milestones", key_of("milestones", record).encode(), None), self._soon()
            )
        if self._random.random() < 0.7:
            self._later("users", user, self._lateness())

    def _own_error(self) -> None:
        code = self._random.choice(("malformed_record", "invalid_key", *OWN_ERRORS))
        if code == "malformed_record":
            self._ready.append(Sent("checkins", self._records.id().encode(), b'{"checkin_id": "x'))
            return
        if code == "invalid_key":
            entity, record = "feedback", self._records.feedback(self._match())
            key = self._records.id()
        else:
            entity, spoil = OWN_ERRORS[code]
            record = spoil(self._for(entity))
            key = key_of(entity, record)
        self._ready.append(Sent(entity, key.encode(), _json(record | {EXPECTED: code})))

    # --- addresses ----------------------------------------------------------------------------

    def _claim(self) -> None:
        """Several users claim one address at once, and one or two more later."""
        address = self._address()
        claimants = [self._claimant(address) for _ in range(self._random.randint(2, 4))]
        for user in claimants:
            self._send("users", user)
        for _ in range(self._random.randint(0, 2)):
            self._later("users", self._claimant(address), self._soon())
        if self._random.random() < 0.3:  # the address is freed, and wanted again
            for user in claimants:
                self._send_later(Sent("users", user["id"].encode(), None), 1.0)
            self._later("users", self._claimant(address), 1.0)
            self._later("users", self._claimant(address), 1.2)

    def _swap(self) -> None:
        one, other = self._users.any(), self._users.any()
        if one is other:
            return
        one["email"], other["email"] = other["email"], one["email"]
        if self._random.random() < 0.5:  # by way of a third
            self._send("users", one | {"email": self._address()})
            self._later("users", self._records.update("users", other), 0.5)
            self._later("users", self._records.update("users", one), 1.0)
            return
        for user in (one, other):
            self._send("users", self._records.update("users", user))

    def _hand_over(self) -> None:
        """One user leaves an address, another takes it at the same moment."""
        before = self._users.any()
        address = before["email"]
        before["email"] = self._address()
        self._send("users", self._records.update("users", before))
        after = self._claimant(address)
        self._send("users", after)

    def _claimant(self, address: str) -> Fields:
        if self._random.random() < 0.3:
            return self._users.any() | {"email": address}
        return self._records.user(self._records.id(), address)

    # --- small things -------------------------------------------------------------------------

    def _other(self, user: str, match: str) -> tuple[str, Fields]:
        """A record of one of the six that are neither user nor match, referring to these."""
        make = self._records
        some = match if self._random.random() < 0.5 else None
        choices: tuple[tuple[str, Callable[[], Fields]], ...] = (
            ("events", lambda: make.event(match, [user])),
            ("event_attendance", lambda: make.attendance(user, some)),
            ("skill_sessions", lambda: make.session(user, self._user(), some)),
            ("checkins", lambda: make.checkin(match)),
            ("feedback", lambda: make.feedback(match)),
            ("milestones", lambda: make.milestone(user)),
        )
        entity, record = self._random.choice(choices)
        return entity, record()

    def _for(self, entity: str) -> Fields:
        if entity == "users":
            return self._records.user(self._records.id(), self._address())
        if entity == "matches":
            return self._records.match(self._records.id(), self._user(), self._user())
        while True:
            found, record = self._other(self._user(), self._match())
            if found == entity:
                return record

    def _existing(self) -> tuple[str, Fields]:
        if self._random.random() < 0.2:
            return "matches", self._matches.any()
        item = self._others.any()
        return item["entity"], item["record"]

    def _user(self) -> str:
        id_: str = self._users.any()["id"]
        return id_

    def _match(self) -> str:
        id_: str = self._matches.any()["match_id"]
        return id_

    def _address(self) -> str:
        return f"{self._random.getrandbits(64):x}@example.org"

    def _soon(self) -> float:
        return self._random.uniform(0.05, 2.5)

    def _lateness(self) -> float:
        """Mostly within the grace, now and then about its end, or long after it."""
        share = self._random.choices(
            (self._random.uniform(0.02, 0.7), 1.0, self._random.uniform(1.3, 3)), (8, 1, 1)
        )[0]
        return share * self._grace

    def _send(self, entity: str, record: Fields) -> None:
        self._ready.append(_sent(entity, record))

    def _later(self, entity: str, record: Fields, seconds: float) -> None:
        self._send_later(_sent(entity, record), seconds)

    def _send_later(self, sent: Sent, seconds: float) -> None:
        self._numbers += 1
        heapq.heappush(self._due, (self._now + seconds, self._numbers, sent))

    def _delete(self, entity: str, key: str) -> None:
        self._ready.append(Sent(entity, key.encode(), None))


def _sent(entity: str, record: Fields) -> Sent:
    return Sent(entity, key_of(entity, record).encode(), _json(record))


def _json(record: Fields) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
