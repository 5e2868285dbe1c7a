"""Recognises files without records by their first bytes."""

from __future__ import annotations

import codecs
import re
from typing import Final

from worker.files.records import BOM

_UNPACK: Final = "unpack it first"

NO_TEXT: Final = {
    codecs.BOM_UTF32_LE: "is UTF-32: save it as UTF-8",
    codecs.BOM_UTF32_BE: "is UTF-32: save it as UTF-8",
    b"PK\x03\x04": "is a ZIP archive: unpack it; a workbook is named *.xlsx",
    b"PK\x05\x06": "is an empty ZIP archive",
    b"\xd0\xcf\x11\xe0": "is an old or an encrypted workbook: save it as .xlsx, without a password",
    b"%PDF-": "is a PDF: bring the table that it was made from",
    b"\x89PNG\r\n": "is a picture",
    b"\xff\xd8\xff": "is a picture",
    b"SQLite format 3\0": "is an SQLite database: export its tables as CSV",
    b"PAR1": "is a Parquet file: convert it to CSV",
    b"ARROW1\0\0": "is an Arrow file: convert it to CSV",
    b"Obj\x01": "is an Avro file: convert it to NDJSON",
    b"BZh9": f"is packed with bzip2: {_UNPACK}",
    b"\xfd7zXZ\0": f"is packed with xz: {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is packed with zstd: {_UNPACK}",
    b"7z\xbc\xaf\x27\x1c": f"is a 7-Zip archive: {_UNPACK}",
    b"Rar!\x1a\x07": f"is a RAR archive: {_UNPACK}",
}
"""First bytes that no text has, and the kind of file that begins with them."""

_MARKUP: Final = (
    (re.compile(rb"<\?mso-|<Workbook\b"), "a spreadsheet in XML"),
    (re.compile(rb"(?i)<(?:!doctype\s+html|html|head|body|table|meta|script)\b"), "an HTML page"),
    (re.compile(rb"\A<"), "XML"),
    (re.compile(rb""), "a document in RTF"),
)
_LOOKED_AT: Final = 2_000


def markup(start: bytes) -> str | None:
    """The kind of markup if a text is markup instead of CSV or JSON; else None."""
    text = start[:_LOOKED_AT].removeprefix(BOM).lstrip()
    if not text.startswith((b"<", b"{\\rtf")):
        return None
    kind = next(kind for shows, kind in _MARKUP if shows.search(text))
    return f"is {kind}: open it in a spreadsheet and save it as .xlsx or .csv"
