"""Topic names, and the topic settings that the program relies on. docs/contract.md, "Topics"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.stream import Topic

_DAY_MS: Final = 24 * 3600 * 1000
_REJECTIONS_MS: Final = 30 * _DAY_MS
_REPLAYS_MS: Final = 2 * _REJECTIONS_MS
"""Longer than any rejection is kept: what its audit says decides whether it is sent again. Kafka
removes whole segments, so messages may stay for some days longer than told."""
_RECEIPTS_MS: Final = _DAY_MS
"""How long a request over HTTP may be repeated with its `Idempotency-Key`."""
_ENVELOPE: Final = 64 * 1024
"""Bytes beside a record for the metadata of its rejection or parked copy."""
_FRAMING: Final = 4 * 1024
"""Bytes beside a value for its key, the project's headers and the broker's overhead."""


REQUESTS: Final = "claims"
REPLIES: Final = "grants"
TASK_INPUTS: Final = (REPLIES, REQUESTS, *ENTITIES)
"""The inputs of a task, in the order in which a batch is judged. Records that other tasks wait for
come first. Users come before matches, and matches before the rest, so that more references are
known."""

PROGRESS: Final = "internal.progress"
PARKED: Final = "internal.parked"
RESERVATIONS: Final = "internal.granted"
OWNERS: Final = "internal.owners"
"""The topics of a task's state, as its checkpoint names them. `internal.progress` is among them: an
owner that notices late that it was frozen may write its last checkpoint to a recreated topic."""


class Names(msgspec.Struct, frozen=True):
    """The names of all topics under one prefix."""

    prefix: str = "buddy"

    def accepted(self, entity: str) -> str:
        """The topic of the entity's accepted rows."""
        return f"{self.prefix}.accepted.{entity}"

    def rejected(self, entity: str) -> str:
        """The topic of the entity's rejections."""
        return f"{self.prefix}.rejected.{entity}"

    def input(self, name: str) -> str:
        """The topic of a task's input, by name: an entity, `claims` or `grants`.

        Upstream systems send the records of an entity to its input.
        """
        room = "in" if name in ENTITIES else "internal"
        return f"{self.prefix}.{room}.{name}"

    @property
    def claims(self) -> str:
        """Reservation requests and releases, in the partition of the address's owner."""
        return self.input("claims")

    @property
    def grants(self) -> str:
        """The owners' replies, in the partition of the requesting record."""
        return self.input("grants")

    @property
    def granted(self) -> str:
        """Each owner's reservations, whose rows may still be on their way, by address."""
        return f"{self.prefix}.internal.granted"

    @property
    def exports(self) -> str:
        """Announcements of exports."""
        return f"{self.prefix}.exports"

    @property
    def export_requests(self) -> str:
        """Requests for exports."""
        return f"{self.prefix}.export-requests"

    @property
    def replays(self) -> str:
        """The audit of replays: a message for each rejected record that was sent again."""
        return f"{self.prefix}.replays"

    @property
    def parked(self) -> str:
        """Copies of each task's parked records, by entity, task and ordinal."""
        return f"{self.prefix}.internal.parked"

    @property
    def progress(self) -> str:
        """The checkpoint of each task."""
        return f"{self.prefix}.internal.progress"

    @property
    def owners(self) -> str:
        """The owners that have taken over each task, by owner."""
        return f"{self.prefix}.internal.owners"

    @property
    def schedules(self) -> str:
        """How far each schedule is, by its name; one partition."""
        return f"{self.prefix}.internal.schedules"

    @property
    def receipts(self) -> str:
        """What requests with an `Idempotency-Key` have sent, by the digest of the key."""
        return f"{self.prefix}.internal.receipts"

    def entity_of(self, topic: str) -> str:
        """The entity of an entity's topic: the last part of the topic's name."""
        return topic.rsplit(".", 1)[1]

    def of_state(self) -> tuple[str, ...]:
        """The topics that hold the state of tasks."""
        return (self.progress, self.parked, self.granted, self.owners)

    def of_originals(self) -> Iterator[str]:
        """Topics that hold original records, and the internal topics with the same size limit."""
        for entity in ENTITIES:
            yield self.rejected(entity)
        yield from (self.parked, self.progress, self.claims, self.grants, self.granted)

    def of_one_partition(self) -> tuple[str, ...]:
        """The topics that belong to no task: one partition is enough."""
        return (self.exports, self.export_requests, self.schedules, self.replays, self.receipts)

    def every(self) -> Iterator[str]:
        """All topic names, inputs first."""
        for entity in ENTITIES:
            yield self.input(entity)
        for entity in ENTITIES:
            yield self.accepted(entity)
        yield from self.of_originals()
        yield self.owners
        yield from self.of_one_partition()


def wanted(names: Names, partitions: int, record_limit: int) -> dict[str, Topic]:
    """Every topic with the settings that `buddy topics create` applies.

    Rejections and parked records hold the original bytes as base64. Their limit is therefore 4/3 of
    the record limit, plus an envelope. Only inputs rely on the broker's append time; the other
    topics have it too.
    """
    enlarged = _enlarged(record_limit)
    topics = []
    for entity in ENTITIES:
        topics += [
            Topic(
                names.input(entity),
                partitions,
                retention_ms=7 * _DAY_MS,
                max_message_bytes=record_limit + _ENVELOPE,
            ),
            Topic(names.accepted(entity), partitions, compacted=True, max_message_bytes=enlarged),
            Topic(
                names.rejected(entity),
                partitions,
                retention_ms=_REJECTIONS_MS,
                max_message_bytes=enlarged,
            ),
        ]
    topics += [
        Topic(names.parked, partitions, compacted=True, max_message_bytes=enlarged),
        *(
            Topic(name, partitions, compacted=True, max_message_bytes=enlarged)
            for name in (names.progress, names.granted)
        ),
        *(
            Topic(name, partitions, retention_ms=7 * _DAY_MS, max_message_bytes=enlarged)
            for name in (names.claims, names.grants)
        ),
        Topic(names.owners, partitions, compacted=True),
        Topic(names.exports, 1, retention_ms=30 * _DAY_MS),
        Topic(names.export_requests, 1, retention_ms=7 * _DAY_MS),
        Topic(names.schedules, 1, compacted=True),
        Topic(names.replays, 1, retention_ms=_REPLAYS_MS),
        Topic(names.receipts, 1, retention_ms=_RECEIPTS_MS),
    ]
    return {topic.name: topic for topic in topics}


def largest_value(names: Names, there: Mapping[str, Topic]) -> int:
    """The largest value, in bytes, that all topics of original records accept."""
    return min(there[name].max_message_bytes for name in names.of_originals()) - _FRAMING


def _enlarged(record_limit: int) -> int:
    return record_limit * 4 // 3 + _ENVELOPE


def _inputs_of(names: Names, there: Mapping[str, Topic]) -> dict[str, str]:
    """By topic of `of_originals`: the input with the largest messages that reach the topic."""
    widest = max(map(names.input, ENTITIES), key=lambda name: there[name].max_message_bytes)
    own = {names.rejected(entity): names.input(entity) for entity in ENTITIES}
    return {name: own.get(name, widest) for name in names.of_originals()}


def _policy(names: Names, topic: Topic, is_now: Topic) -> Iterator[str]:
    """What is wrong with what a topic removes."""
    name = topic.name
    read_whole = {
        *map(names.input, ENTITIES),
        *map(names.rejected, ENTITIES),
        names.claims,
        names.grants,
        names.replays,
        names.receipts,
    }
    if is_now.compacted and name in read_whole:
        yield (
            f"topic {name} is compacted, which removes messages that nobody has read: set"
            " cleanup.policy=delete on it"
        )
    if topic.compacted and not is_now.compacted:
        yield f"topic {name} is not compacted: set cleanup.policy=compact on it"
    if topic.compacted and is_now.compacted and is_now.retention_ms is not None:
        yield f"topic {name} removes what is needed: set cleanup.policy=compact alone on it"
    if topic.compacted and is_now.delete_retention_ms < topic.delete_retention_ms:
        yield (
            f"topic {name} keeps tombstones too short a time: set delete.retention.ms="
            f"{topic.delete_retention_ms} or more on it"
        )


def are_missing(topics: Sequence[str]) -> str:
    """The line that tells of missing topics, at least one."""
    more = f" (and {len(topics) - 1} more)" if topics[1:] else ""
    return f"topic {topics[0]} is missing{more}: run 'buddy topics create'"


def complaints(names: Names, there: Mapping[str, Topic], record_limit: int) -> Iterator[str]:
    """What must be changed before the program can rely on the topics, one line per problem."""
    missing = [name for name in names.every() if name not in there]
    if missing:
        yield are_missing(missing)
        return
    partitions = there[names.input("users")].partitions
    inputs = _inputs_of(names, there)
    needed_for = {
        **{names.rejected(entity): ("rejections", _REJECTIONS_MS) for entity in ENTITIES},
        names.replays: ("audits", _REPLAYS_MS),
        names.receipts: ("receipts", _RECEIPTS_MS),
    }
    for name, topic in wanted(names, partitions, record_limit).items():
        is_now = there[name]
        if is_now.partitions != topic.partitions and name not in names.of_one_partition():
            yield (
                f"topic {name} has {is_now.partitions} partitions, but {names.input('users')} "
                f"has {partitions}: create it anew with as many"
            )
        yield from _policy(names, topic, is_now)
        if name in map(names.input, ENTITIES) and not is_now.append_time:
            yield f"topic {name} has no append time: set message.timestamp.type=LogAppendTime on it"
        what, least = needed_for.get(name, ("", 0))
        if is_now.retention_ms is not None and is_now.retention_ms < least:
            yield (
                f"topic {name} keeps {what} too short a time: set retention.ms={least} or more on"
                " it"
            )
        needed, why = topic.max_message_bytes, ""
        if name in inputs:
            taken = there[inputs[name]].max_message_bytes
            # Records with large headers, and malformed ones, must fit as well.
            if (larger := _enlarged(taken - _ENVELOPE)) > needed:
                needed, why = larger, f", but {inputs[name]} takes {taken}"
        if is_now.max_message_bytes < needed:
            yield (
                f"topic {name} takes messages of {is_now.max_message_bytes} bytes at most{why}: "
                f"set max.message.bytes={needed} or more on it"
            )
