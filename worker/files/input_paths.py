"""Expands paths to files, in the order in which they are read.

A directory stands for every readable file in it, in any of the formats. All else in it is named in
notices: other files, hidden files, directories. A finished export is read in one of its formats.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from worker.errors import UsageError
from worker.exports.layout import MANIFEST, METADATA
from worker.exports.manifest import read_manifest
from worker.files.records import ENTITY_ORDER, Notice, printable
from worker.files.sources import InputFile, input_file, parse_name, unreadable

_EXPORTED: Final = ("json", "csv", "xlsx")
"""The formats of a finished export in order of preference: a workbook may hold truncated cells."""
_HIDDEN: Final = (".", "~$")
"""Prefixes of hidden files; `~$` is what Excel puts beside an open workbook."""
_MOST_NAMED: Final = 100
_LONGEST_METADATA: Final = 1 << 20


def expand(
    paths: Iterable[Path], entity: str | None, notice: Notice = lambda _: None
) -> list[InputFile]:
    """The files of these paths: files of many entities first, then by entity, then by name.

    `notice` gets one line about each file of a directory that is left out: 100 at most, then the
    number of the others. Raises UsageError for a path that does not exist or has nothing to read.
    """
    sources = [
        one
        for path in paths
        for one in (
            _directory(path, entity, notice) if path.is_dir() else [input_file(path, entity)]
        )
    ]
    return sorted(sources, key=_order)


def _directory(path: Path, entity: str | None, notice: Notice) -> list[InputFile]:
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
    return found


def _readable(entries: list[Path], entity: str | None) -> tuple[list[InputFile], list[str]]:
    """The readable files of a directory, and a line about each other entry."""
    found, left_out = [], []
    for entry in entries:
        if entry.name == METADATA and entry.is_file() and _is_metadata(entry):
            continue
        member = _member(entry, entity)
        if isinstance(member, InputFile):
            found.append(member)
        else:
            left_out.append(member)
    return found, left_out


def _is_metadata(path: Path) -> bool:
    """Whether a file is the metadata beside an export's CSV files, and so holds no records."""
    try:
        with path.open("rb") as file:
            return {*msgspec.json.decode(file.read(_LONGEST_METADATA))} == {"export_metadata"}
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError):
        return False


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
    listed = [path / file.path for file in manifest.files]
    files = [one for one in listed if one.suffix == f".{exact[0]}" and one.name != METADATA]
    others = [
        printable(Path(one.name))
        for one in entries
        if one.name != MANIFEST and not any(file.is_relative_to(one) for file in files)
    ]
    if others:
        notice(
            f"{printable(path)}: an export, read in its {exact[0].upper()}; left out: "
            f"{', '.join(others[:_MOST_NAMED])}"
        )
    sources = [input_file(one, None) for one in files]
    if entity is None:
        return sources
    chosen = [one for one in sources if one.entity in (None, entity)]
    if not chosen:
        contained = ", ".join(one.entity for one in sources if one.entity)
        raise UsageError(f"{path}: an export without {entity}: it holds {contained}")
    return [InputFile(one.path, entity, one.format) for one in chosen]


def _order(one: InputFile) -> tuple[int, str, str]:
    return (-1 if one.entity is None else ENTITY_ORDER[one.entity], one.path.name, str(one.path))
