"""The metadata of an export: docs/spec.md, "Export Metadata", in each of its three forms."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any

import msgspec

from schemas import ENTITIES

SPEC_VERSION = "1.0.0"
"""The version of docs/spec.md that the files follow."""


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of one export.

    `export_date` is the time of the cut, in UTC; fractions of a second are not shown. `start` and
    `end` are inclusive days. `counts` has the selected entities only, in the registry's order.
    Raises ValueError if `export_date` is not in UTC, or `counts` is out of order.
    """

    export_id: str
    export_date: datetime
    start: date
    end: date
    counts: dict[str, int]
    program_name: str = "Buddy Program"
    version: str = SPEC_VERSION

    def __post_init__(self) -> None:
        if self.export_date.utcoffset() != timedelta(0):
            raise ValueError("export_date must be in UTC")
        if list(self.counts) != [name for name in ENTITIES if name in self.counts]:
            raise ValueError("counts must name entities, in the order of the registry")

    @property
    def exported_at(self) -> str:
        """`export_date` as the files show it: YYYY-MM-DDTHH:MM:SSZ."""
        return self.export_date.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def csv_comment(metadata: Metadata, rows: int) -> str:
    """The seven comment lines that open a CSV file of `rows` rows."""
    return "".join(
        f"# {_one_line(text)}\n"
        for text in (
            "Buddy Program Export",
            f"Export ID: {metadata.export_id}",
            f"Export Date: {metadata.exported_at}",
            f"Date Range: {metadata.start.isoformat()} to {metadata.end.isoformat()}",
            f"Program Name: {metadata.program_name}",
            f"Total Records: {rows}",
            f"Version: {metadata.version}",
        )
    )


def json_object(metadata: Metadata) -> dict[str, Any]:
    """The `export_metadata` object: exactly the fields of the specification, in its order."""
    return {
        "export_id": metadata.export_id,
        "export_date": metadata.exported_at,
        "date_range": {"start": metadata.start.isoformat(), "end": metadata.end.isoformat()},
        "program_name": metadata.program_name,
        "version": metadata.version,
        "record_counts": dict(metadata.counts),
    }


def json_file(metadata: Metadata) -> bytes:
    """The content of `metadata.json`, indented for people."""
    document = msgspec.json.encode({"export_metadata": json_object(metadata)})
    return msgspec.json.format(document, indent=2) + b"\n"


def sheet_rows(metadata: Metadata) -> list[tuple[str, str | int]]:
    """The rows of the sheet "Export Metadata": the JSON object's fields with their paths."""
    rows: list[tuple[str, str | int]] = []
    for name, value in json_object(metadata).items():
        if isinstance(value, dict):
            rows.extend((f"{name}.{inner}", content) for inner, content in value.items())
        else:
            rows.append((name, value))
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
