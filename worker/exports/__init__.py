"""Exports: from spooled rows to finished files, and the check that they are what they should be.

The writers (`csv_file`, `json_file`, `xlsx_file`) are pure: rows in, chunks out. `directory` is
the shell that reads and writes, a `Place` is where it publishes.
"""

from worker.exports.layout import FORMATS, Format, directory_name, download_name
from worker.exports.manifest import Cut, ExportedFile, Manifest, Options, Origin, read_manifest
from worker.exports.metadata import Metadata
from worker.exports.place import Finished, Place
from worker.exports.place_directory import DirectoryPlace
from worker.exports.spool import Spool
from worker.exports.verify import Verification, verify
from worker.exports.write import total_steps, write_export

__all__ = [
    "FORMATS",
    "Cut",
    "DirectoryPlace",
    "ExportedFile",
    "Finished",
    "Format",
    "Manifest",
    "Metadata",
    "Options",
    "Origin",
    "Place",
    "Spool",
    "Verification",
    "directory_name",
    "download_name",
    "read_manifest",
    "total_steps",
    "verify",
    "write_export",
]
