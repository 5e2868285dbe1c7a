"""Bookmarks: what was delivered under a name, for the incremental export that comes next.

They live in the store's database, so they go when the store is rebuilt. A bookmark holds key and
digest of each delivered row under a generation of its own, and a head that says which generation
counts. Promises:

* A new generation counts only once its export is finished, and then from one moment to the next.
* Whether it is finished is asked of the place, so a kill at any moment leaves bookmark and exports
  in agreement after `settle`: at the start, and around every incremental export.
* A schedule's bookmark has a name that no request can have (`SCHEDULED`). Stores of a release that
  did not tell them apart have it under the schedule's plain name, where requests may have moved it:
  it stays theirs, and the schedule begins its own with a full export, which says why.
* Before an export can be published its generation is flushed to disk, with the hash of its
  manifest: what another sink has published under its id is none of ours.
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
"""Of an export's id the finished export; None if there is none."""

_TAGS: Final = {name: number.to_bytes() for number, name in enumerate(ENTITIES)}


class FullBecause(StrEnum):
    """Why an incremental export holds all rows."""

    NO_BASE = "no_base"
    """No export of that name has been finished."""
    STORE_REBUILT = "store_rebuilt"
    """The store was rebuilt since: what had been delivered is no longer known."""
    OTHER_OPTIONS = "other_options"
    """The last one had other entities or another date range."""
    BASE_DAMAGED = "base_damaged"
    """What is known of the last one is not complete."""
    BASE_GONE = "base_gone"
    """The last one is not at the place any more: it was removed, or an older copy was put back."""
    OWN_BOOKMARK = "own_bookmark"
    """The first under the schedule's own bookmark; that of its plain name is one of requests."""
    OTHER_SINK = "other_sink"
    """The last one was made by another sink, or from another store than this."""


class Mark(msgspec.Struct, frozen=True):
    """One generation. The hash is known once all is written, the directory once it is finished."""

    generation: int
    export_id: str
    entities: tuple[str, ...]
    days: Days
    cut: Cut
    rows: dict[str, int] = {}
    """How many rows of each entity were delivered."""
    directory: str = ""
    manifest_sha256: str = ""

    def base(self) -> Base:
        """How a manifest names the export."""
        return Base(self.export_id, self.directory, self.manifest_sha256, self.cut)


class _Head(msgspec.Struct, frozen=True):
    current: Mark | None = None
    pending: Mark | None = None


class Bookmarks:
    """All bookmarks of a store. Its calls block."""

    def __init__(self, store: RowStore) -> None:
        self._store = store

    def names(self) -> list[str]:
        """Those that there are."""
        return list(self._heads())

    def find(
        self, name: str, selection: Selection, finished: Iterable[Finished]
    ) -> Mark | FullBecause:
        """The base of an incremental export, or why it has none. Settle before you ask.

        `finished` are the exports at the place, the newest first; none is looked at that
        comes after the bookmark's own.
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
        """A new generation, to be filled; it counts when `settle` finds its export finished."""
        heads = self._heads()
        marks = [m for head in heads.values() for m in (head.current, head.pending) if m]
        number = 1 + max((mark.generation for mark in marks), default=0)
        mark = Mark(number, export_id, selection.entities, selection.days, cut)
        head = msgspec.structs.replace(heads.get(name, _Head()), pending=mark)
        self._write(name, head, flush=False)
        return Draft(self._store, number, lambda rows: self._seal(name, rows))

    def expect(self, name: str, manifest_sha256: str) -> None:
        """The manifest that the pending export will have; flushed to disk when this returns."""
        head = self._heads().get(name, _Head())
        pending = msgspec.structs.replace(_still(head), manifest_sha256=manifest_sha256)
        self._write(name, _Head(head.current, pending), flush=True)

    def settle(self, published: Published) -> None:
        """Let those generations count whose export is finished; drop the others.

        Dropped are the unfinished ones, and those whose export is another sink's.
        Nobody may be filling one. Raises `StateError`.
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
        """Remove a bookmark that has turned out to be damaged."""
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

    def _write(self, name: str, head: _Head, *, flush: bool, drop: Mark | None = None) -> None:
        """Change a head, and with it drop a generation, in one step."""
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


def _still(head: _Head) -> Mark:
    """The pending generation. Raises `StateLost` where it went with the store."""
    if head.pending is None:
        raise StateLost("the store was rebuilt while an incremental export was made: begin anew")
    return head.pending


class Draft:
    """A generation that is being filled. Its calls block, and raise `StateError`.

    `StateLost` where the store was wiped meanwhile: then the generation is another's.
    """

    def __init__(
        self, store: RowStore, generation: int, seal: Callable[[Mapping[str, int]], None]
    ) -> None:
        self._store = store
        self._wiped = store.wiped
        self._prefix = delivered_prefix(generation)
        self._seal = seal

    def note(self, entity: str, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """These rows (key and digest) will have been delivered."""
        start = self._prefix + _TAGS[entity]
        batch = WriteBatch(raw_mode=True)
        for key, digest in rows:
            batch[start + key] = digest
        with self._store.database() as db:
            if self._store.wiped != self._wiped:
                _still(_Head())
            db.write(batch)

    def seal(self, rows: Mapping[str, int]) -> None:
        """All are noted, so many of each entity; flushed to disk when this returns."""
        self._seal(rows)


def _overtaken(mark: Mark | None, name: str, finished: Iterable[Finished]) -> FullBecause | None:
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
    # Retention removes it only once another sink has made a newer one.
    is_newest = first is None or _time(first.name) <= _time(mark.directory)
    return FullBecause.BASE_GONE if is_newest else FullBecause.OTHER_SINK


def _time(directory: str) -> str:
    return directory.partition("_")[0]
