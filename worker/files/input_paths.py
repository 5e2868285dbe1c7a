"""Expands paths to files, in the order in which they are read.

A directory stands for every readable file in it, in any of the formats. All else in it is named in
notices: other files, hidden files, directories. A finished export is read in one of its formats.
What its manifest states of these files goes with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from worker.errors import UsageError
from worker.exports.layout import DELETIONS, MANIFEST, METADATA
from worker.exports.manifest import ExportedFile, Manifest, read_manifest
from worker.files.records import ENTITY_ORDER, Notice, printable
from worker.files.sources import InputFile, input_file, parse_name, unreadable
from worker.files.stated import ListedFile, Mismatch, OnMismatch, record_counts

_EXPORTED: Final = ("json", "csv", "xlsx")
"""The formats of a finished export in order of preference: a workbook may hold truncated cells."""
_HIDDEN: Final = (".", "~$")
"""Prefixes of hidden files; `~$` is what Excel puts beside an open workbook."""
_MOST_NAMED: Final = 100
_LONGEST_METADATA: Final = 1 << 20


def expand(
    paths: Iterable[Path],
    entity: str | None,
    notice: Notice = lambda _: None,
    mismatch: OnMismatch = lambda _: None,
) -> list[InputFile]:
    """The files of these paths: files of many entities first, then by entity, then by name.

    `notice` gets one line about each file of a directory that is left out: 100 at most, then the
    number of the others. `mismatch` gets the entities that a metadata.json counts and that no file
    holds. Raises UsageError for a path that does not exist or has nothing to read.
    """
    sources = [
        one
        for path in paths
        for one in (
            _directory(path, entity, notice, mismatch)
            if path.is_dir()
            else [input_file(path, entity)]
        )
    ]
    return sorted(sources, key=_order)


def _directory(
    path: Path, entity: str | None, notice: Notice, mismatch: OnMismatch
) -> list[InputFile]:
    try:
        entries = sorted(path.iterdir())
        if (path / MANIFEST).is_file():
            return _export(path, entity, entries, notice)
        found, left_out = _readable(entries, entity)
    except OSError as error:
        raise unreadable(path, error) from error
    if not found:
        why = f"; {left_out[0]}" if left_out else ""
        more = f", and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise UsageError(
            f"{path}: nothing to read in it: no <entity>.ndjson, no files of an export{why}{more}"
        )
    for line in left_out[:_MOST_NAMED]:
        notice(f"left out: {line}")
    if len(left_out) > _MOST_NAMED:
        notice(f"left out: {len(left_out) - _MOST_NAMED} more files of {printable(path)}")
    counts = _metadata(path / METADATA) or {}
    for one in _not_there(path / METADATA, counts, entity, found):
        mismatch(one)
    return [_listed_in_metadata(one, counts) for one in found]


def _readable(entries: list[Path], entity: str | None) -> tuple[list[InputFile], list[str]]:
    """The readable files of a directory, and a line about each other entry."""
    found, left_out = [], []
    for entry in entries:
        if entry.name == METADATA and _metadata(entry) is not None:
            continue
        member = _member(entry, entity)
        if isinstance(member, InputFile):
            found.append(member)
        else:
            left_out.append(member)
    return found, left_out


def _metadata(path: Path) -> dict[str, int] | None:
    """The numbers of records in the metadata beside an export's CSV files. None if it is none."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            found = msgspec.json.decode(file.read(_LONGEST_METADATA))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict) or {*found} != {"export_metadata"}:
        return None
    return record_counts(found["export_metadata"])


def _listed_in_metadata(one: InputFile, counts: Mapping[str, int]) -> InputFile:
    """The file with what the metadata beside it states, if it is a CSV file of the export."""
    entity = one.entity
    if (
        entity is None
        or entity not in counts
        or one.path.name.removesuffix(".gz") != f"{entity}.csv"
    ):
        return one
    return msgspec.structs.replace(one, listed=ListedFile(METADATA, {entity: counts[entity]}))


def _not_there(
    metadata: Path, counts: Mapping[str, int], entity: str | None, found: Iterable[InputFile]
) -> Iterator[Mismatch]:
    """The mismatch of each entity that has records by the metadata, but no file."""
    there = {one.entity for one in found}
    if None in there:  # a file of many entities
        return
    path = printable(metadata)
    for name, count in counts.items():
        if count and name not in there and entity in (None, name):
            records = "1 record" if count == 1 else f"{count} records"
            text = f"{path} says {records} of {name}, and no file beside it holds any"
            yield Mismatch(path, text, name, count, 0)


def _member(path: Path, entity: str | None) -> InputFile | str:
    """A file of a directory, or why it is left out. `entity` applies if the name contains none.

    Raises UsageError for a file that is named for an entity but cannot be read.
    """
    if path.is_dir():
        return f"{path}: a directory in a directory; name it as well to read it"
    if path.name.startswith(_HIDDEN):
        return f"{path}: hidden"
    if not path.is_file():
        return f"{path}: no file"
    kind, named = parse_name(path)
    try:
        found = input_file(path, None)
    except UsageError as error:
        if kind is not None and named is not None:
            raise
        if kind is None or entity is None:
            return str(error)
        found = input_file(path, entity)
    if entity is not None and found.entity is None:
        return InputFile(path, entity, found.format)
    if entity not in (None, found.entity):
        return f"{path}: holds {found.entity}"
    return found


def _export(path: Path, entity: str | None, entries: list[Path], notice: Notice) -> list[InputFile]:
    """The files of a finished export, in one of its formats."""
    manifest = read_manifest(path)
    exact = [kind for kind in _EXPORTED if kind in manifest.options.formats]
    if not exact:
        raise UsageError(f"{path}: an export without files")
    files = [
        file
        for file in manifest.files
        if file.path.endswith(f".{exact[0]}") and Path(file.path).name != METADATA
    ]
    others = [
        _left_out(one.name, manifest)
        for one in entries
        if one.name != MANIFEST and not any((path / f.path).is_relative_to(one) for f in files)
    ]
    if others:
        notice(
            f"{printable(path)}: an export, read in its {exact[0].upper()}; left out: "
            f"{', '.join(others[:_MOST_NAMED])}"
        )
    if not manifest.complete:
        missing = sum(sum(offsets.values()) for offsets in manifest.pending.values())
        notice(
            f"{printable(path)}: the export is not complete: when it was made, {missing} records "
            "of the inputs were not judged"
        )
    sources = [_listed(input_file(path / one.path, None), one, manifest) for one in files]
    if entity is None:
        return sources
    chosen = [one for one in sources if one.entity in (None, entity)]
    if not chosen:
        contained = ", ".join(one.entity for one in sources if one.entity)
        raise UsageError(f"{path}: an export without {entity}: it holds {contained}")
    return [msgspec.structs.replace(one, entity=entity) for one in chosen]


def _left_out(name: str, manifest: Manifest) -> str:
    """The name of a file of an export that is left out, with what is lost by that."""
    if name != DELETIONS or manifest.incremental is None:
        return printable(Path(name))
    count = sum(sum(reasons.values()) for reasons in manifest.incremental.deletions.values())
    return f"{name} (1 deletion)" if count == 1 else f"{name} ({count} deletions)"


def _listed(one: InputFile, file: ExportedFile, manifest: Manifest) -> InputFile:
    """The file with what the manifest states of it."""
    counts = manifest.record_counts if one.entity is None else {one.entity: file.rows}
    listed = ListedFile(MANIFEST, counts, file.bytes, file.sha256)
    return msgspec.structs.replace(one, listed=listed)


def _order(one: InputFile) -> tuple[int, str, str]:
    return (-1 if one.entity is None else ENTITY_ORDER[one.entity], one.path.name, str(one.path))
