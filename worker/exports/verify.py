"""Verifies a finished export with other parsers than the code that wrote it.

Each file of the manifest must exist with the right size and SHA-256. The csv module, the json
module or openpyxl must find the right number of rows in it. SHA256SUMS, if the manifest lists it,
must agree with the manifest. Memory stays small, apart from what openpyxl uses.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
from openpyxl import load_workbook

from schemas import ENTITIES
from worker.errors import UsageError
from worker.exports.layout import DELETIONS, MANIFEST, METADATA, SUMS
from worker.exports.manifest import ExportedFile, Manifest, read_manifest, sums
from worker.exports.places.links import link_on_the_way

_READ: Final = 1 << 20
_LONGEST_VALUE: Final = 1 << 26


class Verification(msgspec.Struct, frozen=True):
    """The result: rows by file and entity, and one line for each problem."""

    manifest: Manifest
    rows: dict[str, dict[str, int]]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as the manifest says."""
        return not self.problems


def verify(directory: Path) -> Verification:
    """Check a finished export, following no symbolic link in it. Blocking.

    Raises UsageError if it has no readable manifest, or if `directory` itself is a link.
    """
    if link_on_the_way(directory, MANIFEST):
        raise UsageError(f"{directory}: a symbolic link is no export: name the directory itself")
    manifest = read_manifest(directory)
    rows: dict[str, dict[str, int]] = {}
    problems: list[str] = []
    for file in manifest.files:
        path = directory / file.path
        if link_on_the_way(directory, file.path):
            problems.append(f"{file.path}: is a symbolic link, or below one")
            continue
        try:
            problems += _content(path, file)
            if file.path == SUMS:
                problems += _sums(path, manifest)
                continue
            rows[file.path] = dict(_count(path, manifest))
        except Exception as error:  # noqa: BLE001, a damaged file makes a parser raise anything
            problems.append(f"{file.path}: cannot be read ({type(error).__name__})")
            continue
        problems += _compare(file, rows[file.path], _expected(file, manifest))
    listed = {MANIFEST, *(file.path for file in manifest.files)}
    found = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_symlink() or path.is_file()
    }
    problems += [f"{path}: is not in the manifest" for path in sorted(found - listed)]
    return Verification(manifest, rows, tuple(problems))


def _expected(file: ExportedFile, manifest: Manifest) -> Mapping[str, int]:
    if file.path != DELETIONS:
        return manifest.record_counts
    deletions = manifest.incremental.deletions if manifest.incremental is not None else {}
    return {entity: sum(reasons.values()) for entity, reasons in deletions.items()}


def _content(path: Path, file: ExportedFile) -> Iterator[str]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as content:
        while data := content.read(_READ):
            digest.update(data)
            size += len(data)
    if size != file.bytes:
        yield f"{file.path}: {size} bytes instead of {file.bytes}"
    elif digest.hexdigest() != file.sha256:
        yield f"{file.path}: the content has changed (SHA-256)"


def _sums(path: Path, manifest: Manifest) -> Iterator[str]:
    expected = sums(manifest.files)
    with path.open("rb") as content:
        if content.read(len(expected) + 1) != expected:
            yield f"{SUMS}: does not list the files of the manifest with their SHA-256"


def _compare(
    file: ExportedFile, rows: Mapping[str, int], expected: Mapping[str, int]
) -> Iterator[str]:
    if sum(rows.values()) != file.rows:
        yield f"{file.path}: {sum(rows.values())} rows instead of {file.rows}"
    for entity, count in rows.items():
        if count != expected.get(entity, 0):
            yield f"{file.path}: {count} {entity} instead of {expected.get(entity, 0)}"
    if file.path.endswith((".json", ".xlsx", DELETIONS)) and rows:
        for entity in expected.keys() - rows.keys():
            yield f"{file.path}: has no {entity}"


def _count(path: Path, manifest: Manifest) -> Mapping[str, int]:
    if path.name == METADATA:
        json.loads(path.read_bytes())["export_metadata"]["export_id"]
        return {}
    if path.name == DELETIONS:
        with path.open(encoding="utf-8") as file:
            return Counter(ENTITIES[json.loads(line)["entity"]].name for line in file)
    if path.suffix == ".csv":
        return _count_csv(path)
    if path.suffix == ".xlsx":
        return _count_xlsx(path)
    counts = _count_json(path, manifest.export_id)
    if not counts and manifest.record_counts:
        raise ValueError("no arrays")
    return counts


def _count_csv(path: Path) -> Mapping[str, int]:
    columns = [column.name for column in ENTITIES[path.stem].columns]
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 26))
    with path.open(encoding="utf-8", newline="") as file:
        total = next((line for line in file if line.startswith("# Total Records: ")), "")
        rest = (line for line in file if not line.startswith("# Version: "))
        reader = csv.reader(rest, strict=True)
        if next(reader, None) != columns:
            raise ValueError("other columns")
        rows = 0
        for row in reader:
            if len(row) != len(columns):
                raise ValueError("a row of another length")
            rows += 1
    if rows != int(total.rpartition(" ")[2]):
        raise ValueError("another total in the header")
    return {path.stem: rows}


def _count_xlsx(path: Path) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    sheets = {entity.sheet: entity for entity in ENTITIES.values()}
    workbook = load_workbook(path, read_only=True)
    try:
        for sheet in workbook.worksheets[1:]:
            entity = sheets[sheet.title.partition(" (")[0]]
            rows = sheet.iter_rows(values_only=True)
            if list(next(rows, ())) != [column.name for column in entity.columns]:
                raise ValueError("other columns")
            counts[entity.name] += sum(1 for row in rows if row[0] is not None)
    finally:
        workbook.close()
    return counts


def _count_json(path: Path, export_id: str) -> Mapping[str, int]:
    """Parse the document value by value, so that it is never in memory as a whole."""
    text = _Text(path)
    counts: dict[str, int] = {}
    text.expect("{")
    while True:
        name = text.value()
        text.expect(":")
        if name == "export_metadata":
            if text.value()["export_id"] != export_id:
                raise ValueError("another export id")
        else:
            text.expect("[")
            rows = 0
            separator = "]" if text.peek() == "]" else ","
            while separator == ",":
                text.row()
                rows += 1
                separator = text.expect(",]")
            if not rows:
                text.expect("]")
            counts[str(name)] = rows
        if text.expect(",}") == "}":
            break
    if text.peek():
        raise ValueError("something after the end")
    return counts


class _Text:
    """Decodes the JSON text of a file on demand."""

    def __init__(self, path: Path) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        # Numbers stay text: Python refuses to convert numbers of thousands of digits.
        self._decoder = json.JSONDecoder(parse_int=str, parse_float=str)
        self._chunks = chain(
            (decoder.decode(data) for data in _chunks(path)),
            (decoder.decode(b"", final=True) for _ in range(1)),
        )
        self._buffer = ""
        self._at = 0

    def _more(self) -> bool:
        chunk = next(self._chunks, None)
        self._buffer = self._buffer[self._at :] + (chunk or "")
        self._at = 0
        return chunk is not None

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, allowed: str) -> str:
        """The next character. Raises ValueError if it is not one of `allowed`."""
        character = self.peek()
        if not character or character not in allowed:
            raise ValueError("not the JSON document of an export")
        self._at += 1
        return character

    def row(self) -> None:
        """Skip the next value. Raises ValueError if it is not an object."""
        if self.peek() != "{":
            raise ValueError("a row that is no object")
        self.value()

    def value(self) -> Any:
        """The next value: a string or an object. ValueError if there is none."""
        self.peek()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._buffer, self._at)
            except ValueError:
                if len(self._buffer) > _LONGEST_VALUE or not self._more():
                    raise
            else:
                return value


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(_READ):
            yield data
