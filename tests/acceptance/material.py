"""Records for acceptance tests: the made-up programme as files, and rows by hand."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas import ENTITIES
from tests.acceptance.accounts import Verdict
from worker.demo.record import Record
from worker.demo.record_stream import stream
from worker.files.records import BOM


def sendable(records: int, seed: int, *, bad_share: float = 0.05) -> list[Record]:
    """A stream of those records that fit on a line of NDJSON, where the file has no keys."""
    return [
        r
        for r in stream(records, seed, datetime.now(UTC), bad_share)
        if r.value is not None
        and r.value.strip()
        and b"\n" not in r.value
        and not r.value.startswith(BOM)  # at the start of a file it would be skipped
        and "invalid_key" not in r.expect
    ]


def split(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """The records, and those that claim an address that one of the others must have first."""
    everything = list(records)
    return (
        [r for r in everything if "duplicate_email" not in r.expect],
        [r for r in everything if "duplicate_email" in r.expect],
    )


def expected(records: Iterable[Record], *, timely: bool = False) -> Counter[Verdict]:
    """The verdicts that these records are to be given.

    Only where all references are judged at the end, or nothing comes late, are the codes of
    `TIMELY` among them.
    """
    verdicts = Counter((r.entity, tuple(sorted(set(r.expect)))) for r in records)
    return verdicts if timely else timeless(verdicts)


TIMELY = frozenset({"orphaned_attendee"})
"""Attendees are never waited for: two workers, one of them killed, may judge an event before the
users that it names (docs/contract.md, "Violations")."""


def timeless(verdicts: Counter[Verdict]) -> Counter[Verdict]:
    """The same verdicts without the codes of `TIMELY`."""
    found: Counter[Verdict] = Counter()
    for (entity, codes), count in verdicts.items():
        found[entity, tuple(code for code in codes if code not in TIMELY)] += count
    return found


def write(directory: Path, records: Iterable[Record]) -> Path:
    """The records as a directory of `<entity>.ndjson`, each in its order."""
    directory.mkdir(parents=True)
    lines: dict[str, list[bytes]] = {entity: [] for entity in ENTITIES}
    for record in records:
        assert record.value is not None
        lines[record.entity].append(record.value + b"\n")
    for entity, content in lines.items():
        if content:
            (directory / f"{entity}.ndjson").write_bytes(b"".join(content))
    return directory


def write_rows(directory: Path, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """Rows as a directory of `<entity>.ndjson`."""
    directory.mkdir(parents=True, exist_ok=True)
    for entity, content in rows.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (directory / f"{entity}.ndjson").write_bytes(text.encode())
    return directory


def user(**fields: Any) -> dict[str, Any]:
    """A user whom nobody else is."""
    number = str(uuid.uuid4())
    return {
        "id": number,
        "email": f"{number}@example.org",
        "first_name": "Ada",
        "last_name": "Nordmann",
        "role": "participant",
        "joined_at": "2025-01-01T00:00:00Z",
        **fields,
    }
