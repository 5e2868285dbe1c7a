"""Which files a path means, in which order, and how each is read.

A file is told by its name: `<entity>.ndjson`, `<entity>.csv` or `buddy_<entity>_YYYY-MM-DD.csv`,
`*.json` (the document of an export), `*.xlsx`; with an entity given, by its ending alone, and
anything else is NDJSON. Nothing is passed over in silence that looks like data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.exports.layout import MANIFEST, METADATA
from worker.exports.manifest import read_manifest
from worker.files.csv_table import entity_of_csv, read_csv
from worker.files.json_document import read_document
from worker.files.ndjson import read_ndjson
from worker.files.records import READ_LIMIT, FileRecord
from worker.files.workbook import read_workbook

FileFormat = Literal["ndjson", "csv", "json", "xlsx"]

_FORMATS: Final[dict[str, FileFormat]] = {
    ".ndjson": "ndjson",
    ".csv": "csv",
    ".json": "json",
    ".xlsx": "xlsx",
}
_DOWNLOADED: Final = re.compile(r"buddy_([a-z_]+)_[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_ORDER: Final = {name: n for n, name in enumerate(ENTITIES)}
_EXPORTED: Final = ("json", "csv", "xlsx")
"""Which format of a finished export is read: exact first; a workbook may hold cut cells."""


class Source(msgspec.Struct, frozen=True):
    """One file to be read. `entity` is None where the file itself tells, row by row."""

    path: Path
    entity: str | None
    format: FileFormat

    def read(self, *, limit: int = READ_LIMIT) -> Iterator[FileRecord]:
        """The records of the file; of one over `limit` bytes only the start.

        UsageError, one line that names file and place, where the file cannot be read on.
        """
        name = os.fsencode(self.path).decode(errors="replace")
        try:
            if self.format == "xlsx":
                chosen = None if self.entity is None else ENTITIES[self.entity]
                yield from read_workbook(self.path, chosen, limit=limit)
                return
            with self.path.open("rb") as stream:
                if self.format == "json":
                    yield from read_document(stream, self.entity, name, limit=limit)
                elif self.format == "csv":
                    chosen = None if self.entity is None else ENTITIES[self.entity]
                    yield from read_csv(stream, chosen, name, limit=limit)
                elif self.entity is not None:
                    yield from read_ndjson(stream, self.entity, name, limit=limit)
        except OSError as error:
            raise _unreadable(self.path, error) from error


def read(path: Path, entity: str | None, *, limit: int = READ_LIMIT) -> Iterator[FileRecord]:
    """The records of one file. UsageError as `Source.read` and `source` raise it."""
    return source(path, entity).read(limit=limit)


def in_entity_order(sources: Sequence[Source], *, limit: int = READ_LIMIT) -> Iterator[FileRecord]:
    """The records of several files, all of one entity before the first of the next.

    A file of many entities is read once for each of them, unless it is the only one and has them
    in order already. Raises UsageError as `Source.read` does.
    """
    mixed = [source for source in sources if source.entity is None]
    if not mixed or (len(sources) == 1 and _is_ordered(sources[0])):
        for source in sources:
            yield from source.read(limit=limit)
        return
    for entity in ENTITIES:
        for source in sources:
            if source.entity is None:
                records = source.read(limit=limit)
                yield from (record for record in records if record.entity == entity)
            elif source.entity == entity:
                yield from source.read(limit=limit)


def _is_ordered(source: Source) -> bool:
    latest = -1
    for record in source.read():
        place = _ORDER[record.entity]
        if place < latest:
            return False
        latest = place
    return True


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
    kind = _FORMATS.get(path.suffix.lower())
    if kind in ("json", "xlsx"):
        return Source(path, entity, kind)
    if entity is not None:
        return Source(path, entity, kind or "ndjson")
    if kind == "ndjson" and path.stem in ENTITIES:
        return Source(path, path.stem, kind)
    if kind == "csv":
        return Source(path, _entity_of_csv(path), kind)
    raise UsageError(
        f"{path}: its name does not tell what it holds: say --entity, or name it "
        "<entity>.ndjson, <entity>.csv, *.json or *.xlsx"
    )


def _entity_of_csv(path: Path) -> str:
    if path.stem in ENTITIES:
        return path.stem
    downloaded = _DOWNLOADED.match(path.stem)
    if downloaded and downloaded[1] in ENTITIES:
        return downloaded[1]
    try:
        found = entity_of_csv(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found is None:
        raise UsageError(f"{path}: neither its name nor its columns tell the entity: say --entity")
    return found.name


def _directory(path: Path, entity: str | None) -> list[Source]:
    try:
        files = sorted(
            one
            for one in path.iterdir()
            if one.is_file()
            and not one.name.startswith(".")
            and one.suffix.lower() in _FORMATS
            and one.name not in (MANIFEST, METADATA)
        )
    except OSError as error:
        raise _unreadable(path, error) from error
    if (path / MANIFEST).is_file():
        return _export(path, entity)
    kinds = sorted({_FORMATS[one.suffix.lower()] for one in files})
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
