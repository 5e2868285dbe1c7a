"""What upstream systems send: users that contend for addresses, and what refers to them.

The script is drawn from the seed alone, not from what happens meanwhile: the same records come
in the same order whoever dies.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Final
from uuid import UUID

import msgspec

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.dice import Dice
from tests.proofs.simulation.records import Records, Sent, named
from tests.proofs.simulation.settings import Settings
from worker.brokers.partitioner import partition_for

_MOMENT: Final = "2024-01-15T10:00:00Z"
"""Stands in the script for a moment of each record's own, by which it is known."""

_IDS: Final = [str(UUID(int=n << 64 | n * 7919, version=4)) for n in range(1, 600)]
USERS: Final = _IDS[:150]
MATCHES: Final = _IDS[150:300]
OTHERS: Final = _IDS[300:]
MALFORMED: Final = b"{"


class Upstream:
    """The script of a run; `send` appends the next record of it."""

    def __init__(self, cluster: Cluster, settings: Settings, records: Records) -> None:
        self._cluster = cluster
        self._settings = settings
        self._records = records
        self._dice = Dice(settings.seed * 2 + 1)
        self._topic = settings.rules.names.input
        self._spare = {"users": list(USERS), "matches": list(MATCHES), "others": list(OTHERS)}
        self._known: dict[str, list[str]] = {"users": [], "matches": []}
        self._promised: list[tuple[str, str]] = []
        self._others: list[str] = []
        self._addresses: dict[str, str] = {}
        self._script: list[Sent] = []
        self._write_script()
        self._next = 0
        self._marks = 0
        self._refused: list[bytes] = []
        """The marks of records whose rows the broker never takes."""
        self.done = False
        """Whether everything is sent."""

    def send(self) -> bool:
        """Append the next record of the script to its input, unless that is not there now."""
        sent = self._script[self._next]
        if self._topic(sent.entity) not in self._cluster.topics:
            return False
        self._next += 1
        self.done = self._next == len(self._script)
        self._append(sent)
        return True

    def again(self, entity: str, most: int) -> None:
        """Append the first so many records of an entity that were sent so far once more."""
        known = [sent for sent in self._script[: self._next] if sent.entity == entity]
        for sent in known[:most]:
            self._append(msgspec.structs.replace(sent, first_read=None, ambiguous=False))

    def refuses(self, topic: str, value: bytes | None) -> bool:
        """Whether the broker never takes this: the row of a record that is refused."""
        if not self._refused or value is None or ".accepted." not in topic:
            return False
        return any(mark in value for mark in self._refused)

    def _append(self, sent: Sent) -> None:
        cluster, tasks = self._cluster, self._settings.rules.tasks
        key = sent.key.encode() if sent.keyed else None
        if key is None or sent.anywhere:
            number = self._dice.below(tasks)
        else:
            number = partition_for(key, tasks)
        topic, value = self._topic(sent.entity), sent.value
        if value is not None:
            self._marks += 1
            moment = f"2024-01-15T10:{self._marks // 60:02}:{self._marks % 60:02}Z"
            if value == MALFORMED:
                value = MALFORMED + moment.encode()
                sent.mark = b64encode(value)
            else:
                sent.mark = moment.encode()
                value = value.replace(_MOMENT.encode(), sent.mark)
            if sent.refused:
                self._refused.append(sent.mark)
        message = cluster.append(cluster.log((topic, number)), key, value)
        sent.generation = cluster.generations[topic]
        sent.source = named(f"{topic}/{number}/{message.offset}", sent.generation)
        sent.partition, sent.offset = number, message.offset
        sent.moment, sent.tick = message.timestamp, cluster.tick
        self._records.note(sent, message)

    # --- the script ---------------------------------------------------------------------------

    def _write_script(self) -> None:
        s = self._settings
        deeds: list[tuple[float, Callable[[], None]]] = [
            (4, self._new_user),
            (4, self._update_user),
            (1, self._swap),
            (2, self._hand_over),
            (s.deletions, self._delete),
            (4, self._match),
            (4, self._checkin),
            (2, self._attendance),
            (1, self._event),
            (s.bad, self._bad),
            (1, self._repeat),
            (2, self._keep_promise),
        ]
        weights, acts = zip(*deeds, strict=True)
        while len(self._script) < s.records:
            self._dice.choices(acts, weights)[0]()
        while self._promised:
            self._keep_promise()
        for sent in self._script:
            sent.keyed = sent.kind == "deletion" or self._dice.random() >= s.keyless
            sent.anywhere = self._dice.random() < s.foreign
            sent.refused = sent.kind == "row" and self._dice.random() < s.refused

    def _add(
        self,
        entity: str,
        key: str,
        value: str,
        references: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
        address: str | None = None,
    ) -> None:
        users, matches = references
        self._script.append(Sent(entity, key, "row", value.encode(), users, matches, address))

    def _user(self, user: str, address: str | None = None) -> None:
        if address is None:
            address = self._address(user)
        self._addresses[user] = address
        if user not in self._known["users"]:
            self._known["users"].append(user)
        value = (
            f'{{"id":"{user}","email":"{address}","first_name":"A","last_name":"B",'
            f'"role":"buddy","joined_at":"{_MOMENT}"}}'
        )
        self._add("users", user, value, address=address)

    def _address(self, user: str) -> str:
        if not self._settings.ordered:
            return f"u{USERS.index(user)}@b.org"
        return f"a{self._dice.below(self._settings.addresses)}@b.org"

    def _new_user(self) -> None:
        self._user(self._spare["users"].pop(0))

    def _update_user(self) -> None:
        known = self._known["users"]
        self._user(self._dice.choice(known) if known else self._spare["users"].pop(0))

    def _two(self) -> tuple[str, str] | None:
        known = self._known["users"]
        if len(known) < 2 or not self._settings.ordered:
            return None
        one, other = self._dice.sample(known, 2)
        return one, other

    def _swap(self) -> None:
        if two := self._two():
            one, other = two
            mine, yours = self._addresses[one], self._addresses[other]
            self._user(one, yours)
            self._user(other, mine)

    def _hand_over(self) -> None:
        """One moves away, and another takes the address."""
        if two := self._two():
            one, other = two
            address = self._addresses[one]
            self._user(one)
            self._user(other, address)

    def _delete(self) -> None:
        entity = self._dice.choice(("users", "users", "matches"))
        if known := self._known[entity]:
            key = self._dice.choice(known)
            self._script.append(Sent(entity, key, "deletion", None))

    def _reference(self, entity: str) -> str:
        """Something known; or what comes later, or never."""
        known, spare = self._known[entity], self._spare[entity]
        if known and self._dice.random() >= self._settings.late:
            return self._dice.choice(known)
        promised = [id_ for kind, id_ in self._promised if kind == entity]
        if promised and self._dice.random() < 0.5:
            return self._dice.choice(promised)
        fresh = spare.pop(0)
        if self._dice.random() >= self._settings.never:
            self._promised.append((entity, fresh))
        return fresh

    def _keep_promise(self) -> None:
        if self._promised:
            entity, id_ = self._promised.pop(self._dice.below(len(self._promised)))
            if entity == "users":
                self._user(id_)
            else:
                self._match(id_)

    def _match(self, match: str | None = None) -> None:
        known = self._known["matches"]
        if match is None:
            if known and self._dice.random() < 0.3:
                match = self._dice.choice(known)
            else:
                match = self._spare["matches"].pop(0)
        one, other = self._reference("users"), self._reference("users")
        if match not in known:
            known.append(match)
        value = (
            f'{{"match_id":"{match}","participant_id":"{one}","buddy_id":"{other}",'
            f'"matched_at":"{_MOMENT}","status":"active"}}'
        )
        self._add("matches", match, value, ((one, other), ()))

    def _other(self) -> str:
        """The id of a record that nothing refers to; at times one that has been sent."""
        if self._others and self._dice.random() < 0.3:
            return self._dice.choice(self._others)
        self._others.append(self._spare["others"].pop(0))
        return self._others[-1]

    def _checkin(self) -> None:
        checkin, match = self._other(), self._reference("matches")
        value = f'{{"checkin_id":"{checkin}","match_id":"{match}","checkin_date":"{_MOMENT}"}}'
        self._add("checkins", checkin, value, ((), (match,)))

    def _attendance(self) -> None:
        event, user = self._other(), self._reference("users")
        matches = (self._reference("matches"),) if self._dice.random() < 0.5 else ()
        extra = f'"match_id":"{matches[0]}",' if matches else ""
        value = (
            f'{{"event_id":"{event}","user_id":"{user}",{extra}"event_title":"T",'
            f'"event_type":"social","event_format":"online","attended_at":"{_MOMENT}"}}'
        )
        self._add("event_attendance", f"{event}:{user}", value, ((user,), matches))

    def _event(self) -> None:
        event, match = self._other(), self._reference("matches")
        attendee = self._reference("users")
        value = (
            f'{{"event_id":"{event}","match_id":"{match}","event_type":"T",'
            f'"event_date":"{_MOMENT}","attendees":["{attendee}"]}}'
        )
        self._add("events", event, value, ((), (match,)))

    def _bad(self) -> None:
        """A record with an error of its own, under the key of a good one."""
        if not self._script:
            return
        like = self._dice.choice(self._script)
        if like.kind == "row":
            value, code = MALFORMED, "malformed_record"
            if like.entity == "users" and self._dice.random() < 0.5 and like.value is not None:
                value, code = like.value.replace(b'"buddy"', b'"king"'), "invalid_enum"
            self._script.append(Sent(like.entity, like.key, "invalid", value, code=code))

    def _repeat(self) -> None:
        """The same record again, as at-least-once sends it."""
        if self._script:
            like = self._dice.choice(self._script)
            if like.kind != "deletion" or self._settings.ordered:
                self._script.append(msgspec.structs.replace(like))
