"""Sends rejected records to their inputs again, each rejection once. docs/contract.md, "Replay".

The same transaction writes the records and their audit. So the audit says exactly what was sent,
whoever was killed and when, and a rejection that it names is not sent again. The transactional name
is one for all replays of a prefix: a second one fences the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final, NamedTuple

from worker.brokers.contract import Broker, Committer
from worker.core.topics import Names
from worker.desk.audit import (
    MOST_REPLAYS,
    ORIGIN_HEADER,
    ReplayAudit,
    encode_audit,
    is_coordinate,
    with_replay_headers,
)
from worker.desk.counts import ACCEPTED, DELETED, REPLAYED
from worker.desk.originals import read_messages, read_original
from worker.desk.queries import Candidate
from worker.errors import MessageRefused
from worker.stream import Message, Partition, ProducerRecord

_ENOUGH_BYTES: Final = 8 * 1024 * 1024
"""Of rejections in one transaction."""

# Why a rejection is not sent.
SENT_BEFORE: Final = "sent again before"
SETTLED: Final = "accepted or deleted since"
SUPERSEDED: Final = "a newer version was rejected"
TOO_OFTEN: Final = "sent again too often"
NO_ORIGINAL: Final = "original not kept"
GONE: Final = "no longer in its topic"
UNREADABLE: Final = "not a rejection"
REFUSED: Final = "refused by the broker"


class ReplayRun(NamedTuple):
    """What may be sent, and what the audit says of it."""

    replay: str
    at: str
    by: str
    partitions: int
    """Of each input now."""
    most: int = MOST_REPLAYS
    forced: bool = False


class Resent(NamedTuple):
    """A record to be sent again, with its audit."""

    record: ProducerRecord
    audit: ReplayAudit


Skipped = Counter[str]
"""How many rejections were not sent, by reason."""


def sendable(candidates: Sequence[Candidate], run: ReplayRun, skipped: Skipped) -> list[Candidate]:
    """Those that may be sent by what the store knows of them."""
    found = []
    for candidate in candidates:
        if candidate.state == REPLAYED:
            skipped[SENT_BEFORE] += 1
        elif candidate.superseded:
            skipped[SUPERSEDED] += 1
        elif candidate.state in (ACCEPTED, DELETED) and not run.forced:
            skipped[SETTLED] += 1
        else:
            found.append(candidate)
    return found


async def batches(
    broker: Broker,
    names: Names,
    chosen: Sequence[Candidate],
    run: ReplayRun,
    skipped: Skipped,
) -> AsyncIterator[list[Resent]]:
    """The records of these rejections, some MiB at a time, read from their topics.

    Those of one partition come in their order. Raises BrokerUnavailable, DamagedLog.
    """
    left = {(candidate.partition, candidate.offset): candidate for candidate in chosen}
    batch: list[Resent] = []
    size = 0
    async for message in read_messages(broker, chosen):
        candidate = left.pop((Partition(message.topic, message.partition), message.offset))
        resent = resend(message, names, candidate, run)
        if isinstance(resent, str):
            skipped[resent] += 1
            continue
        batch.append(resent)
        size += len(message.value or b"")
        if size >= _ENOUGH_BYTES:
            yield batch
            batch, size = [], 0
    skipped[GONE] += len(left)
    if batch:
        yield batch


def resend(message: Message, names: Names, candidate: Candidate, run: ReplayRun) -> Resent | str:
    """The record of a rejection as it is sent again, or why it is not. Pure.

    It goes to the partition that it came from, where other versions of its key are.
    """
    found = read_original(message)
    if found is None:
        return UNREADABLE
    rejection = found.rejection
    if not rejection.is_whole:
        return NO_ORIGINAL
    if rejection.replays >= run.most:
        return TOO_OFTEN
    topic = names.input(rejection.entity)
    earlier = dict(found.headers).get(ORIGIN_HEADER, b"").decode(errors="replace")
    origin = earlier if is_coordinate(earlier) else f"{topic}/{found.partition}/{found.offset}"
    replays = rejection.replays + 1
    record = ProducerRecord(
        topic,
        found.key,
        found.value,
        with_replay_headers(found.headers, origin, replays),
        found.partition if found.partition < run.partitions else None,
    )
    audit = ReplayAudit(
        replay=run.replay,
        at=run.at,
        by=run.by,
        entity=rejection.entity,
        key=rejection.key,
        rejection=f"{message.topic}/{message.partition}/{message.offset}",
        origin=origin,
        replays=replays,
        forced=candidate.state in (ACCEPTED, DELETED),
    )
    return Resent(record, audit)


async def commit(
    committer: Committer, names: Names, resent: Sequence[Resent], skipped: Skipped
) -> tuple[list[ProducerRecord], list[tuple[int, int]]]:
    """Send records and their audit in one transaction; the records sent, and where they are.

    Records that the broker refuses are left out. Raises Fenced, BrokerUnavailable, MissingTopic.
    """
    while resent:
        records = [one.record for one in resent]
        audits = [ProducerRecord(names.replays, *encode_audit(one.audit)) for one in resent]
        try:
            written = await committer.commit([*records, *audits], {})
        except MessageRefused as error:
            refused = {index % len(records) for index in error.refused}
            if not refused:
                raise
            skipped[REFUSED] += len(refused)
            resent = [one for index, one in enumerate(resent) if index not in refused]
        else:
            return records, written[: len(records)]
    return [], []
