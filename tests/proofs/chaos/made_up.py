"""A log to be made up by hand, for the tests of the checker."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from typing import Any

from tests.proofs.chaos.books import digest
from tests.proofs.chaos.checker import Options, check
from tests.proofs.chaos.entities import SHAPES, Topics, key_of
from tests.proofs.chaos.recording import Entry, Memory
from tests.proofs.chaos.records import Fields, Records
from tests.proofs.chaos.report import Report

GRACE = 3_000
TOPICS = Topics()
MAKE = Records(random.Random(1))

Source = tuple[str, int, int, Fields | None, bytes]


class World:
    """A log to be made up: inputs, their outcomes, and what the export holds."""

    def __init__(self) -> None:
        self.topics: defaultdict[str, list[Entry]] = defaultdict(list)
        self.exported: dict[str, dict[str, bytes]] = {entity: {} for entity in SHAPES}

    def write(self, topic: str, at: int, key: bytes, value: bytes | None, **more: Any) -> Entry:
        partition = more.get("partition", 0)
        offset = sum(e.partition == partition for e in self.topics[topic]) + more.get("skip", 0)
        source = more.get("source", "")
        headers: list[tuple[str, bytes]] = [("buddy-source", source.encode())] if source else []
        if "warnings" in more:
            headers.append(("buddy-warnings", more["warnings"].encode()))
        if "round" in more:
            headers.append(("buddy-accepted-at", more["round"].encode()))
        entry = Entry(partition, offset, at, key, value, tuple(headers))
        self.topics[topic].append(entry)
        return entry

    def send(self, entity: str, record: Fields, at: int, partition: int = 0) -> Source:
        key = key_of(entity, record).encode()
        entry = self.write(
            TOPICS.inputs[entity], at, key, json.dumps(record).encode(), partition=partition
        )
        return entity, partition, entry.offset, record, key

    def send_deletion(self, entity: str, key: str, at: int) -> Source:
        entry = self.write(TOPICS.inputs[entity], at, key.encode(), None)
        return entity, 0, entry.offset, None, key.encode()

    def accept(self, sent: Source, at: int, **more: Any) -> None:
        entity, partition, offset, record, key = sent
        if record is None:
            value = None
            self.exported[entity].pop(key.decode(), None)
        else:
            row = more.pop("row", record)
            value = json.dumps(row).encode()
            self.exported[entity][key.decode()] = digest(row)
        more.setdefault("partition", partition)
        more.setdefault("source", f"{TOPICS.inputs[entity]}/{partition}/{offset}")
        self.write(TOPICS.accepted[entity], at, key, value, **more)

    def reject(self, sent: Source, at: int, *errors: tuple[str, str], **more: Any) -> None:
        entity, partition, offset, record, key = sent
        topic = TOPICS.inputs[entity]
        rejection = {
            "source": {"topic": topic, "partition": partition, "offset": offset},
            "violations": [{"code": c, "field": f, "severity": "error"} for c, f in errors],
            "record": record,
        } | more
        source = f"{topic}/{partition}/{offset}"
        self.write(
            TOPICS.rejected[entity], at, key, json.dumps(rejection).encode(),
            partition=partition, source=source,
        )  # fmt: skip

    def user(self, at: int, address: str = "", partition: int = 0) -> Fields:
        """A user, sent and accepted at once."""
        id_ = MAKE.id()
        record = MAKE.user(id_, address or f"{id_}@example.org")
        self.accept(self.send("users", record, at, partition), at)
        return record

    def match(self, at: int) -> Fields:
        """A match of two new users, all accepted at once."""
        record = MAKE.match(MAKE.id(), self.user(at)["id"], self.user(at)["id"])
        self.accept(self.send("matches", record, at), at)
        return record

    def found(self, **options: Any) -> dict[str, int]:
        """The violations by kind."""
        return dict(self.report(**options).violations)

    def report(self, **options: Any) -> Report:
        report = Report()
        check(Memory(self.topics), self.exported, Options(grace_ms=GRACE, **options), report)
        return report
