"""Which files a path means, in which order, and how each is read.

A file is told by its name: `<entity>.ndjson`, `<entity>.csv` or `buddy_<entity>_YYYY-MM-DD.csv`,
`*.json` (the document of an export, or `<entity>.json`), `*.xlsx`; with an entity given, by its
ending alone, and anything else is NDJSON. `.gz` may follow, whether the file is gzip shows in its
first bytes. A text file (`.txt`) with a header line of column names is CSV. Nothing is passed over
in silence that looks like data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.exports.layout import MANIFEST, METADATA
from worker.exports.manifest import read_manifest
from worker.files.csv_table import csv_header, read_csv
from worker.files.encodings import ChunkStream, as_utf8
from worker.files.json_document import read_document, tells_entities
from worker.files.ndjson import read_ndjson
from worker.files.records import READ_LIMIT, FileRecord, Notice, printable
from worker.files.table import recognise
from worker.files.workbook import entities_of_workbook, read_workbook

FileFormat = Literal["ndjson", "csv", "json", "xlsx"]

_FORMATS: Final[dict[str, FileFormat]] = {
    ".ndjson": "ndjson",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}
_PACKED: Final = ".gz"
_DOWNLOADED: Final = re.compile(r"buddy_([a-z_]+)_[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_ORDER: Final = {name: n for n, name in enumerate(ENTITIES)}
_EXPORTED: Final = ("json", "csv", "xlsx")
"""Which format of a finished export is read: exact first; a workbook may hold cut cells."""


class Source(msgspec.Struct, frozen=True):
    """One file to be read. `entity` is None where the file itself tells, row by row."""

    path: Path
    entity: str | None
    format: FileFormat

    def read(
        self, *, limit: int = READ_LIMIT, notice: Notice = lambda _: None
    ) -> Iterator[FileRecord]:
        """The records of the file; of one over `limit` bytes only the start.

        `notice` gets one line about each sheet or column that is left out. UsageError, one line
        that names file and place, where the file cannot be read on.
        """
        chosen = None if self.entity is None else ENTITIES[self.entity]
        try:
            if self.format == "xlsx":
                yield from read_workbook(self.path, chosen, limit=limit, notice=notice)
                return
            with _text(self.path) as (stream, name):
                if self.format == "json":
                    yield from read_document(stream, self.entity, name, limit=limit)
                elif self.format == "csv":
                    yield from read_csv(stream, chosen, name, limit=limit, notice=notice)
                elif self.entity is not None:
                    yield from read_ndjson(stream, self.entity, name, limit=limit)
        except OSError as error:
            raise _unreadable(self.path, error) from error


def read(path: Path, entity: str | None, *, limit: int = READ_LIMIT) -> Iterator[FileRecord]:
    """The records of one file. UsageError as `Source.read` and `source` raise it."""
    return source(path, entity).read(limit=limit)


def in_entity_order(
    sources: Sequence[Source],
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
) -> Iterator[FileRecord]:
    """The records of several files, all of one entity before the first of the next.

    A file of many entities is read once for each of them, unless it is the only one and has them
    in order already; then a `notice` may come more than once. Raises UsageError as `Source.read`
    does.
    """
    mixed = [source for source in sources if source.entity is None]
    if not mixed or (len(sources) == 1 and _is_ordered(sources[0])):
        for source in sources:
            yield from source.read(limit=limit, notice=notice)
        return
    for entity in ENTITIES:
        for source in sources:
            if source.entity is None:
                records = source.read(limit=limit, notice=notice)
                yield from (record for record in records if record.entity == entity)
            elif source.entity == entity:
                yield from source.read(limit=limit, notice=notice)


def _is_ordered(source: Source) -> bool:
    if source.format == "xlsx":
        try:
            found = [e for e in entities_of_workbook(source.path) if e is not None]
        except OSError as error:
            raise _unreadable(source.path, error) from error
        return found == sorted(found, key=_ORDER.__getitem__)
    latest = -1
    for record in source.read():
        place = _ORDER[record.entity]
        if place < latest:
            return False
        latest = place
    return True


@contextmanager
def _text(path: Path) -> Iterator[tuple[ChunkStream, str]]:
    """A file as UTF-8, and its name."""
    with path.open("rb") as file:
        name = printable(path)
        yield as_utf8(file, name), name


def expand(paths: Iterable[Path], entity: str | None) -> list[Source]:
    """The files that paths mean: those of many entities first, then by entity, then by name.

    A directory means its NDJSON files, or else its CSV files, or else its JSON document or its
    workbook; a finished export, in whatever formats, is read once. UsageError for a path that is
    not there, means nothing, or means several things.
    """
    sources = [
        one
        for path in paths
        for one in (_directory(path, entity) if path.is_dir() else [source(path, entity)])
    ]
    return sorted(sources, key=_place)


def source(path: Path, entity: str | None) -> Source:
    """How one file is read. UsageError if neither its name nor its header tells what it holds."""
    if entity is not None and entity not in ENTITIES:
        raise UsageError(f"{entity} is no entity; there are {', '.join(ENTITIES)}")
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory")
    try:
        return _told(path, entity)
    except OSError as error:
        raise _unreadable(path, error) from error


def _told(path: Path, entity: str | None) -> Source:
    kind, stem = _format(path)
    if kind == "xlsx":
        return Source(path, entity, kind)
    named = stem if stem in ENTITIES else None
    if kind == "json":
        with _text(path) as (stream, name):
            whole = tells_entities(stream, name)
        return Source(path, entity if whole else entity or named, kind)
    header: list[str] = []
    if kind == "csv" or path.name.lower().removesuffix(_PACKED).endswith(".txt"):
        header = _header(path)
    found = recognise(header)
    if kind is None and found is not None and entity in (None, found.name):
        return Source(path, found.name, "csv")
    if entity is not None:
        return Source(path, entity, kind or "ndjson")
    if kind == "ndjson" and named is not None:
        return Source(path, named, kind)
    if kind == "csv":
        downloaded = _DOWNLOADED.match(stem)
        if named is None and downloaded and downloaded[1] in ENTITIES:
            named = downloaded[1]
        named = named or (None if found is None else found.name)
        if named is None:
            raise UsageError(
                f"{path}: neither its name nor its columns tell the entity: say --entity"
            )
        return Source(path, named, kind)
    if path.suffix.lower() in (".xls", ".xlsb", ".ods", ".numbers"):
        raise UsageError(f"{path}: save it as .xlsx, which can be read")
    raise UsageError(
        f"{path}: its name does not tell what it holds: say --entity, or name it "
        "<entity>.ndjson, <entity>.csv, *.json or *.xlsx"
    )


def _format(path: Path) -> tuple[FileFormat | None, str]:
    """What the name says of the format, and the name without its endings."""
    name = path.name
    if name.lower().endswith(_PACKED):
        name = name[: -len(_PACKED)]
    inner = Path(name)
    kind = _FORMATS.get(inner.suffix.lower())
    if kind == "xlsx" and inner.name != path.name:
        kind = None
    return kind, inner.stem


def _header(path: Path) -> list[str]:
    """The column names in the header line of a file, none if it has no such line."""
    try:
        with _text(path) as (stream, name):
            return csv_header(stream, name)
    except UsageError:
        return []  # whoever reads the file says what is wrong with it


def _directory(path: Path, entity: str | None) -> list[Source]:
    try:
        files = sorted(
            one
            for one in path.iterdir()
            if one.is_file()
            and not one.name.startswith((".", "~$"))  # Excel's lock files
            and _format(one)[0]
            and one.name not in (MANIFEST, METADATA)
        )
    except OSError as error:
        raise _unreadable(path, error) from error
    if (path / MANIFEST).is_file():
        return _export(path, entity)
    kinds = sorted({kind for one in files if (kind := _format(one)[0])})
    if not kinds:
        raise UsageError(
            f"{path}: nothing to read in it: no <entity>.ndjson, no files of an export"
        )
    if len(kinds) > 1:
        raise UsageError(f"{path}: holds {' and '.join(kinds)} files; name the files you mean")
    return [source(one, entity) for one in files]


def _export(path: Path, entity: str | None) -> list[Source]:
    """The files of a finished export, in one of its formats."""
    manifest = read_manifest(path)
    exact = [kind for kind in _EXPORTED if kind in manifest.options.formats]
    if not exact:
        raise UsageError(f"{path}: an export without files")
    listed = [path / file.path for file in manifest.files]
    files = [one for one in listed if one.suffix == f".{exact[0]}" and one.name != METADATA]
    sources = [source(one, None) for one in files]
    if entity is None:
        return sources
    return [Source(one.path, entity, one.format) for one in sources if one.entity in (None, entity)]


def _place(one: Source) -> tuple[int, str, str]:
    return (-1 if one.entity is None else _ORDER[one.entity], one.path.name, str(one.path))


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be read: {error.strerror or type(error).__name__}")
