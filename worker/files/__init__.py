"""Reads records from files: NDJSON, and the three formats of exports.

A reader splits a file into records and names the place of each. Other code validates the records.
A fault in a file's frame is a UsageError.
"""

from worker.files.encodings import as_utf8
from worker.files.input_paths import expand
from worker.files.ndjson import read_ndjson
from worker.files.records import READ_LIMIT, FileRecord, Notice
from worker.files.sources import FileFormat, InputFile, in_entity_order, input_file, read
from worker.files.stated import Mismatch, OnMismatch

__all__ = [
    "READ_LIMIT",
    "FileFormat",
    "FileRecord",
    "InputFile",
    "Mismatch",
    "Notice",
    "OnMismatch",
    "as_utf8",
    "expand",
    "in_entity_order",
    "input_file",
    "read",
    "read_ndjson",
]
