"""Decides how to read a file: by its name, and where that is not enough by its first bytes.

Names: `<entity>.ndjson` or `.jsonl`, `<entity>.csv` or `.tsv`, `*.json` (the document of an export,
or `<entity>.json`), `*.xlsx`. `buddy_<entity>_YYYY-MM-DD` names an entity, too. `.gz` may follow,
but the first bytes tell whether the file is gzip. A text file (`.txt`) with a header line of column
names is CSV, and otherwise NDJSON.

If an entity is given, the name need not tell it. A `.json` file is then read by its content, a
`.txt` by its header, and any other file without a known ending is NDJSON. Spreadsheets of other
formats are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.files.csv_table import csv_header, read_csv
from worker.files.encodings import ChunkStream, Readable, as_utf8
from worker.files.foreign import markup
from worker.files.json_document import names_entities, read_document, wrapped_in
from worker.files.ndjson import read_ndjson
from worker.files.records import BOM, ENTITY_ORDER, READ_LIMIT, FileRecord, Notice, printable
from worker.files.stated import (
    Fingerprint,
    ListedFile,
    OnMismatch,
    Statement,
    compare,
    compare_content,
)
from worker.files.tabular import has_column, recognise, shown
from worker.files.workbook import read_workbook

FileFormat = Literal["ndjson", "csv", "json", "xlsx"]

_FORMATS: Final[dict[str, FileFormat]] = {
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}
_PACKED: Final = ".gz"
_DOWNLOADED: Final = re.compile(r"buddy_([a-z_]+)_[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_TXT: Final = ".txt"
_SPREADSHEETS: Final = (".xlsb", ".ods", ".numbers")
_START: Final = 2_000


class InputFile(msgspec.Struct, frozen=True):
    """One file to read. `entity` is None if the file itself names its entities."""

    path: Path
    entity: str | None
    format: FileFormat
    listed: ListedFile | None = None
    """What the export around the file states of it."""

    def read(
        self,
        *,
        limit: int = READ_LIMIT,
        notice: Notice = lambda _: None,
        mismatch: OnMismatch | None = None,
    ) -> Iterator[FileRecord]:
        """The records of the file; of a record over `limit` bytes only the start.

        `notice` gets one line about each sheet or column that is left out. `mismatch` gets, at the
        end, what the file or its export states of the file and is not so. Raises UsageError,
        one line that names file and place, where reading cannot continue.
        """
        name = printable(self.path)
        statement = Statement()
        held: Counter[str] = Counter()
        try:
            with self.path.open("rb") as file:
                content = Fingerprint(file)
                hashed = mismatch is not None and self.listed is not None
                stream = content if hashed else file
                for record in self._records(stream, name, limit, notice, statement):
                    held[record.entity] += 1
                    yield record
                found = list(compare(name, self.entity, held, statement, self.listed))
                if hashed and self.listed is not None and not found:
                    content.read_rest()
                    found += compare_content(name, content, self.listed)
        except OSError as error:
            raise unreadable(self.path, error) from error
        if mismatch is not None:
            for one in found:
                mismatch(one)

    def _records(
        self, file: Readable, name: str, limit: int, notice: Notice, statement: Statement
    ) -> Iterator[FileRecord]:
        chosen = None if self.entity is None else ENTITIES[self.entity]
        if self.format == "xlsx":
            return read_workbook(self.path, chosen, limit=limit, notice=notice, statement=statement)
        stream = as_utf8(file, name)
        if self.format == "json":
            return read_document(
                stream, self.entity, name, limit=limit, notice=notice, statement=statement
            )
        if self.format == "csv":
            return read_csv(stream, chosen, name, limit=limit, notice=notice, statement=statement)
        return (
            iter(()) if self.entity is None else read_ndjson(stream, self.entity, name, limit=limit)
        )


def read(path: Path, entity: str | None, *, limit: int = READ_LIMIT) -> Iterator[FileRecord]:
    """The records of one file. Raises UsageError as `InputFile.read` and `input_file` do."""
    return input_file(path, entity).read(limit=limit)


def in_entity_order(
    files: Sequence[InputFile],
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
    mismatch: OnMismatch | None = None,
) -> Iterator[FileRecord]:
    """The records of several files: all records of one entity, then those of the next.

    A file of many entities is read once for each entity, so a `notice` may repeat. A `mismatch`
    does not. If it is the
    only file, and already in order, its records are given in one go. Raises UsageError as
    `InputFile.read` does.
    """
    mixed = [one for one in files if one.entity is None]
    if not mixed or (len(files) == 1 and _is_ordered(files[0])):
        for one in files:
            yield from one.read(limit=limit, notice=notice, mismatch=mismatch)
        return
    for number, entity in enumerate(ENTITIES):
        for one in files:
            if one.entity is None:
                told = mismatch if number == 0 else None
                records = one.read(limit=limit, notice=notice, mismatch=told)
                yield from (record for record in records if record.entity == entity)
            elif one.entity == entity:
                yield from one.read(limit=limit, notice=notice, mismatch=mismatch)


def _is_ordered(one: InputFile) -> bool:
    if one.format == "xlsx":
        return True
    latest = -1
    for record in one.read():
        position = ENTITY_ORDER[record.entity]
        if position < latest:
            return False
        latest = position
    return True


@contextmanager
def _open_utf8(path: Path) -> Iterator[tuple[ChunkStream, str]]:
    """The text of a file in UTF-8, and the file's name."""
    with path.open("rb") as file:
        name = printable(path)
        yield as_utf8(file, name), name


def input_file(path: Path, entity: str | None) -> InputFile:
    """How to read a file. UsageError if neither its name nor its header shows what it contains."""
    if entity is not None and entity not in ENTITIES:
        raise UsageError(f"{entity} is no entity; there are {', '.join(ENTITIES)}")
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory")
    try:
        return _recognised(path, entity)
    except OSError as error:
        raise unreadable(path, error) from error


def _recognised(path: Path, entity: str | None) -> InputFile:
    """By the format in its name; without one, a text by its header, any other file as NDJSON."""
    kind, entity_in_name = parse_name(path)
    chosen = entity or entity_in_name
    match kind:
        case "xlsx":
            return _workbook(path, entity)
        case "json":
            return _document(path, entity, entity_in_name)
        case "ndjson" | "csv" if chosen is not None:
            return InputFile(path, chosen, kind)
        case "csv":
            return _table(path, entity, entity_in_name)
    if _is_txt(path):
        return _table(path, entity, entity_in_name)
    if (why := _why_unreadable(path)) is not None:
        raise UsageError(f"{path}: {why}")
    if entity is not None:
        return InputFile(path, entity, "ndjson")
    raise UsageError(
        f"{path}: its name does not tell what it holds: say --entity, or name it "
        "<entity>.ndjson, <entity>.csv, *.json or *.xlsx"
    )


def _why_unreadable(path: Path) -> str | None:
    """What to do with a spreadsheet of a format that is not read; None for any other file."""
    ending = path.suffix.lower()
    if ending == ".xls":
        return markup(_start(path)) or "is no workbook: save it as .xlsx, or name a text *.csv"
    return "save it as .xlsx, which can be read" if ending in _SPREADSHEETS else None


def _table(path: Path, entity: str | None, entity_in_name: str | None) -> InputFile:
    """A file whose header must identify it: CSV with an unknown name, or any text."""
    header = _header(path)
    found = recognise(header)
    if found is not None and entity in (None, found.name):
        return InputFile(path, found.name, "csv")
    chosen = entity or entity_in_name
    if chosen is not None and has_column(ENTITIES[chosen], header):
        return InputFile(path, chosen, "csv")
    if entity is not None or (entity_in_name is not None and _is_json(path)):
        return InputFile(path, chosen, "ndjson")
    why = "neither its name nor its columns tell the entity: say --entity"
    raise UsageError(f"{path}: {markup(_start(path)) or why}")


def _workbook(path: Path, entity: str | None) -> InputFile:
    with path.open("rb") as file:
        if why := markup(file.read(_START)):
            raise UsageError(f"{path}: {why}")
    return InputFile(path, entity, "xlsx")


def _document(path: Path, entity: str | None, entity_in_name: str | None) -> InputFile:
    """A JSON document of an export, or of records of one entity. UsageError for a wrapper."""
    with _open_utf8(path) as (stream, name):
        if names_entities(stream, name):
            return InputFile(path, entity, "json")
    with _open_utf8(path) as (stream, name):
        field = wrapped_in(stream, entity or entity_in_name, name)
    if field is not None:
        place = f"in its field {shown(field)}" if field else "deeper in it"
        raise UsageError(
            f"{path}: it is no record itself; its records seem to stand {place}: bring an array "
            "of them as <entity>.json"
        )
    if entity is None and entity_in_name is None:
        start = _start(path).removeprefix(BOM).lstrip()
        what = "an array does not tell its entity" if start.startswith(b"[") else "of no entity"
        why = f"{what}: say --entity, or name the file <entity>.json"
        raise UsageError(f"{path}: {markup(start) or why}")
    return InputFile(path, entity or entity_in_name, "json")


def parse_name(path: Path) -> tuple[FileFormat | None, str | None]:
    """The format and the entity in a file's name, in upper or lower case; None if absent."""
    name = path.name.lower()
    inner = Path(name.removesuffix(_PACKED))
    kind = _FORMATS.get(inner.suffix)
    if kind == "xlsx" and name.endswith(_PACKED):
        kind = None
    downloaded = _DOWNLOADED.match(inner.stem)
    stem = downloaded[1] if downloaded else inner.stem
    return kind, stem if stem in ENTITIES else None


def _is_txt(path: Path) -> bool:
    return path.name.lower().removesuffix(_PACKED).endswith(_TXT)


def _is_json(path: Path) -> bool:
    return _start(path).removeprefix(BOM).lstrip().startswith(b"{")


def _start(path: Path) -> bytes:
    """The start of a text file. Raises UsageError, which names the kind, for another file."""
    with _open_utf8(path) as (stream, _):
        return stream.read(_START)


def _header(path: Path) -> list[str]:
    """The column names in the header line of a file; none if it has no header."""
    try:
        with _open_utf8(path) as (stream, name):
            return csv_header(stream, name)
    except UsageError:
        return []  # reading the file reports what is wrong


def unreadable(path: Path, error: OSError) -> UsageError:
    """The error for a path that the system cannot read."""
    return UsageError(f"{path}: cannot be read: {error.strerror or type(error).__name__}")
