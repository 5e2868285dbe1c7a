"""The independent checker: what stands in the topics and in the export against docs/contract.md.

It shares no code with the program. Entity by entity it reads the inputs, then every outcome, and
holds each promise of the contract against them; memory is bounded by the largest entity.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from tests.proofs.chaos.books import Books, Input, Place, digest, place_of, text_of
from tests.proofs.chaos.entities import SHAPES, Topics, key_of
from tests.proofs.chaos.history import Addresses, History, Version
from tests.proofs.chaos.recording import Entry, Log
from tests.proofs.chaos.report import Report
from tests.proofs.chaos.stream import EXPECTED

LONG_GONE: Final = 30_000
"""Milliseconds after which no worker may take a deleted user for a known one."""

CLAIM_WINDOW: Final = 60_000
"""Milliseconds in which the winner of a contested address must show up in its accepted topic."""

_UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError)
"""What an outcome raises that is not made as the contract says."""

_REFERENCE_CODES: Final = frozenset({"orphaned_user_id", "duplicate_email"})


class Options(NamedTuple):
    """Of a run. With `compacted`, outcomes that a later one of their key superseded may be gone.

    `clocks_wrong`: from when until when the wall clock of some process was set wrong.
    """

    prefix: str = "buddy"
    grace_ms: int = 3_000
    compacted: bool = False
    clocks_wrong: Sequence[tuple[int, int]] = ()


Exported = Mapping[str, Mapping[str, bytes]]
"""Of each entity the digest of each row, by canonical key."""


def check(log: Log, exported: Exported | None, options: Options, report: Report) -> None:
    """Everything; what is found goes into the report."""
    topics = Topics(options.prefix)
    checker = _Checker(log, topics, options, report)
    for entity in ("users", "matches"):
        checker.note_history(entity)
    for entity in SHAPES:
        checker.check_entity(entity, None if exported is None else exported[entity])
    checker.check_addresses()
    checker.check_parked()
    checker.check_requests()
    checker.count_pause()


def read_export(document: Path) -> dict[str, dict[str, bytes]]:
    """The rows of an exported JSON document. Raises ValueError when two rows have one key."""
    content = json.loads(document.read_bytes())
    found: dict[str, dict[str, bytes]] = {}
    for entity in SHAPES:
        rows = content.pop(entity)
        found[entity] = {key_of(entity, row): digest(row) for row in rows}
        if len(found[entity]) < len(rows):
            raise ValueError(f"{document.name}: a key of {entity} occurs twice")
    return found


class _Checker:
    def __init__(self, log: Log, topics: Topics, options: Options, report: Report) -> None:
        self._log = log
        self._topics = topics
        self._options = options
        self._report = report
        self._known = {"users": History(), "matches": History()}
        self._refused: list[tuple[str, str, str, int, int]] = []
        self._unrecorded: set[str | None] = set()
        """Addresses of users whose rows compaction took before they were recorded."""
        self._moments: set[int] = set()

    # --- one entity ---------------------------------------------------------------------------

    def note_history(self, entity: str) -> None:
        """First of all: who was known when."""
        arrivals = {
            (e.partition, e.offset): e.timestamp
            for e in self._log.read(self._topics.inputs[entity])
        }
        history = self._known[entity]
        for entry in self._log.read(self._topics.accepted[entity]):
            source = place_of(entry.header("buddy-source"), self._topics.inputs[entity])
            if entry.key is None or source is None:
                continue  # complained of below
            address = None
            if entity == "users" and entry.value is not None:
                address = json.loads(entry.value)["email"]
            arrived = arrivals.get(source, entry.timestamp)
            alive = entry.value is not None
            round_ = entry.header("buddy-accepted-at")
            version = Version(arrived, entry.timestamp, round_, alive, address)
            history.add(entry.key, version)

    def check_entity(self, entity: str, exported: Mapping[str, bytes] | None) -> None:
        """Inputs against outcomes, outcomes against each other, latest rows against the export."""
        inputs = self._inputs(entity)
        self._report.counts[f"records in: {entity}"] = len(inputs)
        books = Books(self._topics.inputs[entity], inputs, self._report)
        latest: dict[bytes, tuple[bytes, tuple[str, ...]]] = {}
        positions: dict[bytes, Place] = {}
        ends: dict[int, int] = {}
        gaps = 0
        for entry in self._log.read(self._topics.accepted[entity]):
            gaps += entry.offset - ends.get(entry.partition, 0)
            ends[entry.partition] = entry.offset + 1
            self._moments.add(entry.timestamp // 100)
            source = books.settle(entry, self._topics.accepted[entity])
            if source is None or entry.key is None:
                continue
            self._check_order(entity, entry, source, positions)
            if entry.value is None:
                self._accepted_deletion(entity, entry, inputs[source])
                latest.pop(entry.key, None)
                continue
            try:
                latest[entry.key] = self._accepted_row(entity, entry, inputs[source])
            except _UNREADABLE as error:
                self._report.violation("unreadable", f"{self._at(entity, entry)}: {error!r}")
        for entry in self._log.read(self._topics.rejected[entity]):
            self._moments.add(entry.timestamp // 100)
            source = books.settle(entry, self._topics.rejected[entity])
            if source is None:
                continue
            try:
                self._rejected(entity, entry, source, inputs[source])
            except _UNREADABLE as error:
                where = f"{self._topics.rejected[entity]}/{entry.partition}/{entry.offset}"
                self._report.violation("unreadable", f"{where}: {error!r}")
        for source in books.open():
            self._lost(entity, source, inputs[source], positions, gaps)
        if exported is not None:
            self._check_export(entity, latest, exported)

    def _inputs(self, entity: str) -> dict[Place, Input]:
        inputs = {}
        for entry in self._log.read(self._topics.inputs[entity]):
            content, expected, address = None, None, None
            if entry.value is not None:
                try:
                    record = json.loads(entry.value)
                    expected = record.get(EXPECTED)
                    content = digest(record)
                    address = str(record.get("email")).lower() if entity == "users" else None
                except ValueError:
                    expected = "malformed_record"
                    content = digest(base64.b64encode(entry.value).decode())
            inputs[entry.partition, entry.offset] = Input(
                entry.timestamp, content, expected, entry.key, address
            )
        return inputs

    def _lost(
        self,
        entity: str,
        source: Place,
        lost: Input,
        positions: Mapping[bytes, Place],
        gaps: int,
    ) -> None:
        after = positions.get(lost.key or b"")
        if self._options.compacted and after is not None and after > source:
            self._report.counts["compacted away before it was recorded"] += 1
            if self._report.counts["compacted away before it was recorded"] <= gaps:
                self._unrecorded.add(lost.address)
                return
        self._report.violation("no_outcome", f"{self._topics.inputs[entity]}/{text_of(source)}")

    def _check_order(
        self, entity: str, entry: Entry, source: Place, positions: dict[bytes, Place]
    ) -> None:
        assert entry.key is not None
        where = f"{self._topics.accepted[entity]}/{text_of((entry.partition, entry.offset))}"
        if entry.partition != source[0]:
            self._report.violation("other_partition", f"{where} from input partition {source[0]}")
        before = positions.get(entry.key)
        if before is not None and source <= before:
            self._report.violation(
                "order", f"{where}: input {text_of(source)} accepted after {text_of(before)}"
            )
        positions[entry.key] = source

    # --- accepted -----------------------------------------------------------------------------

    def _accepted_deletion(self, entity: str, entry: Entry, sent: Input) -> None:
        self._report.counts[f"deleted: {entity}"] += 1
        if sent.content is not None or sent.key != entry.key:
            self._report.violation("other_content", f"{self._at(entity, entry)} deletes a row")

    def _accepted_row(
        self, entity: str, entry: Entry, sent: Input
    ) -> tuple[bytes, tuple[str, ...]]:
        assert entry.value is not None
        self._report.counts[f"accepted: {entity}"] += 1
        row = json.loads(entry.value)
        content = digest(row)
        where = self._at(entity, entry)
        if sent.expected is not None:
            self._report.violation("not_rejected", f"{where}: expected {sent.expected}")
        elif content != sent.content or key_of(entity, row).encode() != entry.key:
            self._report.violation("other_content", f"{where} is not what was sent")
        users = tuple(row[column] for column in SHAPES[entity].users)
        for user in users:
            self._check_user_known(entity, user, entry, sent)
        codes = entry.header("buddy-warnings")
        for code in filter(None, codes.split(",")):
            self._report.counts[f"warnings: {code}"] += 1
        if "orphaned_match_id" in codes:
            for column in SHAPES[entity].matches:
                self._check_orphan(entity, "matches", row.get(column), entry, sent)
        return content, users

    def _check_user_known(self, entity: str, user: str, entry: Entry, sent: Input) -> None:
        users = self._known["users"]
        if not users.known_before(user, entry.timestamp, entry.header("buddy-accepted-at")):
            if self._options.compacted and users.ever(user):
                self._report.counts["not to be told since compacted"] += 1
            else:
                self._report.violation(
                    "user_not_known", f"{self._at(entity, entry)}: user {user} was not accepted yet"
                )
        elif users.gone_since(user, sent.arrived - LONG_GONE, entry.timestamp):
            self._report.violation(
                "user_long_gone", f"{self._at(entity, entry)}: user {user} had been deleted"
            )

    # --- rejected -----------------------------------------------------------------------------

    def _rejected(self, entity: str, entry: Entry, source: Place, sent: Input) -> None:
        where = f"{self._topics.rejected[entity]}/{text_of((entry.partition, entry.offset))}"
        rejection = json.loads(entry.value or b"{}")
        said = rejection.get("source", {})
        coordinate = [said.get("topic"), said.get("partition"), said.get("offset")]
        if coordinate != [self._topics.inputs[entity], *source]:
            self._report.violation("other_source", f"{where} says {coordinate}")
        errors = [v for v in rejection["violations"] if v["severity"] == "error"]
        codes = {v["code"] for v in errors}
        for code in codes:
            self._report.counts[f"rejected: {code}"] += 1
        if sent.content is None:
            self._report.violation("deletion_rejected", f"{where}: {sorted(codes)}")
            return
        record = rejection["record"]
        original = rejection.get("record_base64") if record is None else record
        if digest(original) != sent.content:
            self._report.violation("other_content", f"{where} does not hold what was sent")
            return
        wanted = {sent.expected} if sent.expected else codes & _REFERENCE_CODES
        if codes != wanted or not codes:
            self._report.violation(
                "other_verdict", f"{where}: {sorted(codes)}, expected {sent.expected}"
            )
            return
        for found in errors:
            if found["code"] == "orphaned_user_id":
                self._check_orphan(entity, "users", record[found["field"]], entry, sent)
            elif found["code"] == "duplicate_email":
                parts = (where, record["email"], record["id"], sent.arrived, entry.timestamp)
                self._refused.append(parts)

    def _check_orphan(
        self, entity: str, target: str, id_: str | None, entry: Entry, sent: Input
    ) -> None:
        if id_ is None:
            return
        deadline = sent.arrived + self._options.grace_ms
        round_ = entry.header("buddy-accepted-at")
        if not round_ and entry.value:
            round_ = json.loads(entry.value).get("rejected_at", "")
        missed = self._known[target].wrongly_missed(id_, deadline, entry.timestamp, round_)
        if missed is not None and self._clock_was_wrong(sent, entry):
            self._report.counts["orphaned early, since a clock was wrong"] += 1
            missed = self._known[target].wrongly_missed(id_, sent.arrived, entry.timestamp, round_)
        if missed is not None:
            source = entry.header("buddy-source")
            self._report.violation(
                "orphan_in_time",
                f"{source} arrived {sent.arrived}, judged {entry.timestamp}: {target} {id_} "
                f"arrived {missed.arrived}, was accepted {missed.accepted}",
            )

    def _clock_was_wrong(self, sent: Input, entry: Entry) -> bool:
        """Whether some clock was wrong while the record waited.

        Whoever takes over a task knows by stamps alone how long a record has waited: then its
        grace may seem to be over. What came before the record counts all the same.
        """
        return any(
            since <= entry.timestamp and until >= sent.arrived
            for since, until in self._options.clocks_wrong
        )

    # --- at the end ---------------------------------------------------------------------------

    def _check_export(
        self,
        entity: str,
        latest: Mapping[bytes, tuple[bytes, tuple[str, ...]]],
        exported: Mapping[str, bytes],
    ) -> None:
        users = self._known["users"]
        expected = {
            key.decode(): content
            for key, (content, refers) in latest.items()
            if all(map(users.alive, refers))
        }
        self._report.counts[f"exported: {entity}"] = len(exported)
        self._report.counts["left out of the export"] += len(latest) - len(expected)
        for key in expected.keys() - exported.keys():
            self._report.violation("not_exported", f"{entity} {key}")
        for key in exported.keys() - expected.keys():
            self._report.violation("exported_without_row", f"{entity} {key}")
        for key in expected.keys() & exported.keys():
            if expected[key] != exported[key]:
                self._report.violation("exported_otherwise", f"{entity} {key}")

    def check_addresses(self) -> None:
        """Nobody shares an address, now or ever; and nobody is refused one that was free."""
        addresses = Addresses(self._known["users"])
        for address, users in addresses.holders_at_the_end():
            self._report.violation("two_holders", f"{address}: {', '.join(users)}")
        for address, first, second in addresses.overlaps():
            self._report.violation(
                "two_holders_at_once",
                f"{address}: {first.user} from {first.start}, {second.user} from {second.start}",
            )
        for where, address, user, arrived, judged in self._refused:
            since, until = arrived - CLAIM_WINDOW, judged + CLAIM_WINDOW
            if addresses.held_by_another(address, user, since, until):
                continue
            if address in self._unrecorded:
                self._report.counts["not to be told since compacted"] += 1
            else:
                self._report.violation("free_address_refused", f"{where}: {address} to {user}")

    def check_parked(self) -> None:
        """Nothing waits any more."""
        latest: dict[bytes | None, bool] = {}
        for entry in self._log.read(self._topics.parked):
            latest[entry.key] = entry.value is not None
        ever = {(key or b"").decode(errors="replace") for key in latest}
        still = {(key or b"").decode(errors="replace") for key, waits in latest.items() if waits}
        held: dict[int, set[str]] = {}
        for entry in self._log.read(self._topics.progress):
            saved = json.loads(entry.value or b"{}").get("held", {})
            held[entry.partition] = {
                f"{entity}/{entry.partition}/{offset}"
                for entity, moments in saved.items()
                for offsets in moments.values()
                for offset in offsets
            }
            ever |= held[entry.partition]
        self._report.counts["ever parked"] = len(ever)
        self._report.counts["with a copy"] = len(latest)
        for place in sorted(still.union(*held.values())):
            self._report.violation("still_parked", place)

    def check_requests(self) -> None:
        """Every request for an export was carried out, or refused as old where clocks jump."""
        asked = {e.key: e for e in self._log.read(self._topics.export_requests)}
        finished: set[bytes] = set()
        old: set[bytes] = set()
        for entry in self._log.read(self._topics.exports):
            answer = json.loads(entry.value or b"{}")
            if answer.get("status") == "finished":
                finished.add(answer["request_id"].encode())
            elif "more than an hour old" in answer.get("error", ""):
                old.add(answer["request_id"].encode())
        self._report.counts["exports asked for"] = len(asked)
        self._report.counts["exports refused as old"] = len(old - finished)
        for key in asked.keys() - finished - old:
            self._report.violation("export_unanswered", (key or b"").decode(errors="replace"))

    def count_pause(self) -> None:
        """For whoever cares how long a takeover lasts."""
        moments = sorted(self._moments)
        pauses = (after - before for before, after in pairwise(moments))
        self._report.counts["longest pause of all outcomes, in ms"] = max(pauses, default=0) * 100

    def _at(self, entity: str, entry: Entry) -> str:
        source = entry.header("buddy-source")
        return (
            f"{self._topics.accepted[entity]}/{text_of((entry.partition, entry.offset))} ({source})"
        )
