"""Finished exports as a list for programs, and the choice of the latest one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec

from worker.exports.layout import Format
from worker.exports.manifest import ExportedFile, Manifest, Options
from worker.exports.order import Order
from worker.exports.places.place import Finished
from worker.sink.requests import feed_of


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A finished export, for programs. Fields shared with an announcement have the same names.

    `full` means that the export holds all rows of its options. Otherwise, it holds only the rows
    that are new or changed since `base`, the id of another export.
    """

    id: str
    export_date: str
    directory: str
    location: str
    bookmark: str | None
    full: bool
    base: str | None
    full_because: str | None
    complete: bool
    options: Options
    counts: dict[str, int]
    files: tuple[ExportedFile, ...]
    manifest_sha256: str


def listed(found: Finished) -> Listed:
    """The entry of one export in the list."""
    manifest = found.manifest
    base = _base(manifest)
    return Listed(
        id=manifest.export_id,
        export_date=manifest.export_date,
        directory=found.name,
        location=found.location,
        bookmark=feed_of(manifest),
        full=base is None,
        base=base,
        full_because=None if manifest.incremental is None else manifest.incremental.full_because,
        complete=manifest.complete,
        options=manifest.options,
        counts=manifest.record_counts,
        files=manifest.files,
        manifest_sha256=found.manifest_sha256,
    )


def chosen(
    found: Iterable[Finished], bookmark: str | None, formats: Iterable[Format]
) -> Iterator[Finished]:
    """The exports that hold all of these formats; only those of `bookmark`, unless it is None."""
    wanted = frozenset(formats)
    for export in found:
        manifest = export.manifest
        if bookmark in (None, feed_of(manifest)) and wanted <= set(manifest.options.formats):
            yield export


def is_whole(manifest: Manifest) -> bool:
    """Whether the export holds all rows of its entities: no increment, and no range of days."""
    options = manifest.options
    return _base(manifest) is None and options.start is None and options.end is None


def age(found: Finished) -> tuple[Order, int, bool]:
    """A sort key for exports, the oldest first. `order` alone is exact to the second only.

    Within a second, the later cut holds more offsets. An increment without new rows has the offsets
    of its base, and follows the base.
    """
    manifest = found.manifest
    offsets = (*manifest.cut.accepted.values(), *manifest.cut.judged.values())
    read = sum(sum(partitions.values()) for partitions in offsets)
    return found.order, read, _base(manifest) is not None


def in_order(found: Iterable[Finished]) -> Iterator[Finished]:
    """The same exports, newest first, those of one second too. Read only as far as needed."""
    for _, same_second in groupby(found, key=lambda export: export.order):
        yield from sorted(same_second, key=age, reverse=True)


def newest(found: Iterable[Finished]) -> Finished | None:
    """The newest export, or None. `found` comes newest first, and is read only as far as needed."""
    for _, same_second in groupby(found, key=lambda export: export.order):
        return max(same_second, key=age)
    return None


def _base(manifest: Manifest) -> str | None:
    incremental = manifest.incremental
    return None if incremental is None or incremental.base is None else incremental.base.export_id
