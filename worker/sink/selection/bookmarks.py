"""Bookmarks: the rows that were delivered under a name, for the name's next incremental export.

Bookmarks live in the store's database, so they are lost when the store is rebuilt. Each export
under a bookmark writes a generation: key and digest of every delivered row. The bookmark's head
names the generation that counts. Promises:

* A new generation counts only once its export is finished; the switch is one atomic write.
* The place decides whether an export is finished. So `reconcile` brings bookmarks and exports into
  agreement after a kill at any moment. It runs at the start, and around every incremental export.
* A schedule's bookmark has a name that no request can have (`SCHEDULED`). Older releases kept it
  under the schedule's plain name, where requests may have moved it. Such a bookmark stays with the
  requests. The schedule starts its own with a full export, which says why it is full.
* A generation is flushed to disk with its manifest's hash before its export can be published. So
  an export that another sink published under the same id is recognised as not this sink's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, cast

import msgspec
from rocksdict import WriteBatch

from schemas import ENTITIES
from worker.errors import StateLost
from worker.exports.manifest import Base, Cut
from worker.exports.places.place import Finished
from worker.sink.requests import SCHEDULED, feed_of
from worker.sink.selection.plan import Days, Selection
from worker.sink.store import rocks
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import BOOKMARK, delivered_prefix

Published = Callable[[str], Finished | None]
"""Looks up a finished export by its id; None if there is none."""

_TAGS: Final = {name: number.to_bytes() for number, name in enumerate(ENTITIES)}


class FullBecause(StrEnum):
    """Why an incremental export holds all rows."""

    NO_BASE = "no_base"
    """No export of that name has been finished."""
    STORE_REBUILT = "store_rebuilt"
    """The store was rebuilt since: the delivered rows are no longer known."""
    OTHER_OPTIONS = "other_options"
    """The last export of that name had other entities or another date range."""
    BASE_DAMAGED = "base_damaged"
    """The rows that the bookmark holds for the last export are incomplete."""
    BASE_GONE = "base_gone"
    """The last export is no longer at the place: removed, or an older copy was put back."""
    OWN_BOOKMARK = "own_bookmark"
    """The first export under the schedule's own bookmark; the plain name belongs to requests."""
    OTHER_SINK = "other_sink"
    """The last export was made by another sink, or from another store than this one."""


class Generation(msgspec.Struct, frozen=True):
    """One generation. The hash is set once all files are written, `directory` once it counts."""

    generation: int
    export_id: str
    entities: tuple[str, ...]
    days: Days
    cut: Cut
    rows: dict[str, int] = {}
    """The number of delivered rows of each entity."""
    directory: str = ""
    manifest_sha256: str = ""

    def base(self) -> Base:
        """The export as a manifest names its base."""
        return Base(self.export_id, self.directory, self.manifest_sha256, self.cut)


class _Head(msgspec.Struct, frozen=True):
    current: Generation | None = None
    pending: Generation | None = None


class Bookmarks:
    """All bookmarks of a store. Its calls block."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def names(self) -> list[str]:
        """The names of all bookmarks."""
        return list(self._heads())

    def find(
        self, name: str, selection: Selection, finished: Iterable[Finished]
    ) -> Generation | FullBecause:
        """The base of an incremental export, or why it has none. Call `reconcile` first.

        `finished` are the exports at the place, newest first. They are read no further than the
        bookmark's own export.
        """
        heads = self._heads()
        mark = heads.get(name, _Head()).current
        overtaken = _overtaken(mark, name, finished)
        if mark is None:
            lost = self._store.lost
            if lost is not None and (lost.names is None or name in lost.names):
                return FullBecause.STORE_REBUILT
            if overtaken:
                return overtaken
            if name.startswith(SCHEDULED) and name.removeprefix(SCHEDULED) in heads:
                return FullBecause.OWN_BOOKMARK
            return FullBecause.NO_BASE
        if overtaken:
            return overtaken
        if (mark.entities, mark.days) != (selection.entities, selection.days):
            return FullBecause.OTHER_OPTIONS
        return mark

    def begin(self, name: str, export_id: str, selection: Selection, cut: Cut) -> Draft:
        """Start a generation, to be filled. It counts once its export is found to be finished."""
        heads = self._heads()
        marks = [m for head in heads.values() for m in (head.current, head.pending) if m]
        number = 1 + max((mark.generation for mark in marks), default=0)
        mark = Generation(number, export_id, selection.entities, selection.days, cut)
        head = msgspec.structs.replace(heads.get(name, _Head()), pending=mark)
        self._write(name, head, flush=False)
        return Draft(self._store, number, lambda rows: self._seal(name, rows))

    def expect(self, name: str, manifest_sha256: str) -> None:
        """Save the hash of the pending export's manifest; flushed to disk when this returns."""
        head = self._heads().get(name, _Head())
        pending = msgspec.structs.replace(_still(head), manifest_sha256=manifest_sha256)
        self._write(name, _Head(head.current, pending), flush=True)

    def reconcile(self, published: Published) -> None:
        """Make each pending generation count if its export is finished; otherwise drop it.

        A generation is also dropped if the export under its id is another sink's. Nobody may be
        filling a generation meanwhile. Raises `StateError`.
        """
        for name, head in self._heads().items():
            mark = head.pending
            if mark is None:
                continue
            found = published(mark.export_id)
            if found is None or found.manifest_sha256 != mark.manifest_sha256:
                self._write(name, _Head(head.current), flush=True, drop=mark)
            else:
                mark = msgspec.structs.replace(mark, directory=found.name)
                self._write(name, _Head(mark), flush=True, drop=head.current)

    def forget(self, name: str) -> None:
        """Remove the damaged generation that counts under this name; a pending one stays."""
        head = self._heads().get(name, _Head())
        self._write(name, _Head(None, head.pending), flush=True, drop=head.current)

    def _seal(self, name: str, rows: Mapping[str, int]) -> None:
        head = self._heads().get(name, _Head())
        sealed = msgspec.structs.replace(_still(head), rows=dict(rows))
        self._write(name, _Head(head.current, sealed), flush=True)

    def _heads(self) -> dict[str, _Head]:
        with self._store.database() as db:
            pairs = db.items(from_key=BOOKMARK, read_opt=rocks.until(rocks.after(BOOKMARK)))
            return {
                cast("bytes", key)[1:].decode(): msgspec.msgpack.decode(value, type=_Head)
                for key, value in pairs
            }

    def _write(
        self, name: str, head: _Head, *, flush: bool, drop: Generation | None = None
    ) -> None:
        """Change a head and drop a generation, in one atomic write."""
        batch = WriteBatch(raw_mode=True)
        key = BOOKMARK + name.encode()
        if head == _Head():
            del batch[key]
        else:
            batch[key] = msgspec.msgpack.encode(head)
        if drop is not None:
            start = delivered_prefix(drop.generation)
            batch.delete_range(start, delivered_prefix(drop.generation + 1))
        with self._store.database() as db:
            if flush:
                db.write(batch, rocks.flushed())
            else:
                db.write(batch)


def _still(head: _Head) -> Generation:
    """The pending generation. Raises `StateLost` if it was lost with the store."""
    if head.pending is None:
        raise StateLost("the store was rebuilt while an incremental export was made: begin anew")
    return head.pending


class Draft:
    """A generation that is being filled. Its calls block, and raise `StateError`.

    They raise `StateLost` if the store was wiped meanwhile: the number may be another generation's.
    """

    def __init__(
        self, store: RowStore, generation: int, seal: Callable[[Mapping[str, int]], None]
    ) -> None:
        self._store = store
        self._wiped = store.times_wiped
        self._prefix = delivered_prefix(generation)
        self._seal = seal

    def note(self, entity: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Add rows (key and digest) that count as delivered under this generation."""
        start = self._prefix + _TAGS[entity]
        batch = WriteBatch(raw_mode=True)
        for key, digest in rows:
            batch[start + key] = digest
        with self._store.database() as db:
            if self._store.times_wiped != self._wiped:
                _still(_Head())
            db.write(batch)

    def seal(self, rows: Mapping[str, int]) -> None:
        """Complete the generation with its row counts; flushed to disk when this returns."""
        self._seal(rows)


def _overtaken(
    mark: Generation | None, name: str, finished: Iterable[Finished]
) -> FullBecause | None:
    """Why the bookmark's export is not the newest of its feed at the place; None if it is."""
    first = None
    for export in finished:
        if mark is not None and export.name == mark.directory:
            is_newest = first is None or first.order <= export.order
            return None if is_newest else FullBecause.OTHER_SINK
        if first is None and feed_of(export.manifest) == name:
            first = export
            if mark is None:
                return FullBecause.OTHER_SINK
    if mark is None:
        return None
    # Retention removes the bookmark's export only once another sink has made a newer one.
    is_newest = first is None or _time(first.name) <= _time(mark.directory)
    return FullBecause.BASE_GONE if is_newest else FullBecause.OTHER_SINK


def _time(directory: str) -> str:
    return directory.partition("_")[0]
