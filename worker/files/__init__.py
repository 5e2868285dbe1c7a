"""Records out of files: NDJSON, and the three formats in which we export.

A reader cuts a file into records and names the place of each; whether a record is good is judged
elsewhere. What a file's frame gets wrong is a UsageError.
"""

from worker.files.directory import expand
from worker.files.encodings import as_utf8
from worker.files.ndjson import read_ndjson
from worker.files.records import READ_LIMIT, FileRecord, Notice
from worker.files.sources import FileFormat, Source, in_entity_order, read, source

__all__ = [
    "READ_LIMIT",
    "FileFormat",
    "FileRecord",
    "Notice",
    "Source",
    "as_utf8",
    "expand",
    "in_entity_order",
    "read",
    "read_ndjson",
    "source",
]
