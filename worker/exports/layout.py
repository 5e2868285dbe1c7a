"""Paths and names of the files of an export: docs/contract.md, "Exports"."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

from worker.exports.metadata import Metadata

Format = Literal["csv", "json", "xlsx"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

MANIFEST: Final = "manifest.json"
METADATA: Final = "metadata.json"
SUMS: Final = "SHA256SUMS"
"""The SHA-256 of each data file, as `sha256sum -c` reads it. Older exports have none."""
DELETIONS: Final = "deletions.ndjson"
"""In incremental exports: rows delivered before that no longer belong, one a line."""


_UUID_V4: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_NAME: Final = re.compile(rf"[0-9]{{8}}T[0-9]{{6}}Z_({_UUID_V4})")


def id_in(name: str) -> str | None:
    """The export id in a directory's name; None if it is not named like an export."""
    found = _NAME.fullmatch(name)
    return None if found is None else found[1]


def directory_name(metadata: Metadata) -> str:
    """The export's directory: `<YYYYMMDDTHHMMSSZ>_<export_id>`."""
    stamp = metadata.exported_at.replace("-", "").replace(":", "")
    return f"{stamp}_{metadata.export_id}"


def base_name(metadata: Metadata) -> str:
    """`buddy_export_YYYY-MM-DD`: the folder of the CSV files, and the other files' stem."""
    return f"buddy_export_{metadata.exported_at[:10]}"


def csv_path(metadata: Metadata, entity: str) -> str:
    """The CSV file of an entity, relative to the export's directory."""
    return f"{base_name(metadata)}/{entity}.csv"


def metadata_path(metadata: Metadata) -> str:
    """The metadata of the CSV files, relative to the export's directory."""
    return f"{base_name(metadata)}/{METADATA}"


def document_path(metadata: Metadata) -> str:
    """The JSON document, relative to the export's directory."""
    return f"{base_name(metadata)}.json"


def workbook_path(metadata: Metadata) -> str:
    """The XLSX workbook, relative to the export's directory."""
    return f"{base_name(metadata)}.xlsx"


def download_name(metadata: Metadata, entity: str) -> str:
    """The name of a CSV file that is downloaded alone: `buddy_users_YYYY-MM-DD.csv`."""
    return f"buddy_{entity}_{metadata.exported_at[:10]}.csv"
