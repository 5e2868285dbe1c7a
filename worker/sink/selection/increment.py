"""Writes the rows of an incremental export: as `spool`, but compared with the delivered rows.

Blocking: call it in a thread. Memory is bounded as in `spool`. Deletions are in the order of
`LEVELS`, referring entities first, so a reader that applies them line by line breaks no reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.exports.layout import DELETIONS
from worker.exports.spool import SpoolFile
from worker.sink.selection.bookmarks import Draft, Generation
from worker.sink.selection.compare import ComparedRow, Gone, compare
from worker.sink.selection.ids import Ids
from worker.sink.selection.plan import Ascending, Picked, Picker, Reason, ReferenceReader, Selection
from worker.sink.selection.spool import LineFile, Pass, Spooled, Waiter
from worker.sink.store.rows import REFERRED
from worker.sink.store.snapshot import Snapshot

_BATCH: Final = 2_000
"""Rows noted at once: each write locks the store for a few milliseconds."""


class Increment(msgspec.Struct, frozen=True):
    """The rows and deletions of an incremental export; all counts are by entity."""

    spooled: Spooled
    deletions: SpoolFile | None
    """The deletions, in the format of deletions.ndjson; None without a base."""
    deleted: Mapping[str, Mapping[Reason, int]]
    into_base: Mapping[str, int]
    totals: Mapping[str, int]


class BaseDamagedError(Exception):
    """The bookmark does not hold the rows that it should. Never leaves the sink."""


class DeletedRow(msgspec.Struct, frozen=True):
    """One line of deletions.ndjson."""

    entity: str
    key: str
    reason: Reason


def spool_increment(
    snapshot: Snapshot,
    selection: Selection,
    directory: Path,
    waiter: Waiter,
    draft: Draft,
    base: Generation | None,
) -> Increment:
    """As `spool`, but only the rows that are new or changed since `base`; without a base, all.

    Notes in `draft` every row that counts as delivered after this export, and seals it. Also
    raises `BaseDamagedError`.
    """
    writing = _Writing(snapshot, selection, directory, waiter, draft, base)
    found = {entity: writing.entity(entity) for entity in selection.in_stages()}
    picked = {entity: found[entity] for entity in selection.entities}
    totals = {entity: one.rows for entity, one in picked.items()}
    draft.seal(totals)
    spooled = Spooled(
        {entity: writing.files[entity] for entity in picked},
        {entity: writing.changed[entity] for entity in picked},
        {entity: writing.earliest[entity] for entity in picked},
        picked,
    )
    deleted = {entity: dict(writing.deleted[entity]) for entity in picked}
    return Increment(
        spooled,
        writing.deletions if base is not None else None,
        {entity: reasons for entity, reasons in deleted.items() if reasons},
        {entity: writing.into_base[entity] for entity in picked if writing.into_base[entity]},
        totals,
    )


class _Writing:
    """The pass over the entities, one after the other, and its results."""

    def __init__(
        self,
        snapshot: Snapshot,
        selection: Selection,
        directory: Path,
        waiter: Waiter,
        draft: Draft,
        base: Generation | None,
    ) -> None:
        self.files: dict[str, SpoolFile] = {}
        self.deletions: SpoolFile | None = None
        self.changed: Counter[str] = Counter()
        self.earliest: dict[str, str | None] = {}
        self.deleted: dict[str, Counter[Reason]] = {}
        self.into_base: Counter[str] = Counter()
        self._snapshot = snapshot
        self._directory = directory
        self._waiter = waiter
        self._draft = draft
        self._base = base
        self._pass = Pass(snapshot, selection, directory)
        self._referred = {
            name: Ids(directory, f"referred-{name}")
            for name in selection.entities
            if name in REFERRED and base is not None
        }
        self._total = sum(snapshot.counts[entity] for entity in selection.entities)
        self._done = 0

    def entity(self, entity: str) -> Picked:
        """Write the rows of one entity; call it for referring entities first."""
        picker = self._pass.picker(entity)
        self.deleted[entity] = Counter()
        self.earliest[entity] = None
        compared = compare(self._judged(entity, picker), self._delivered(entity))
        with (
            LineFile(self._directory / f"{entity}.ndjson") as rows,
            LineFile(self._directory / DELETIONS, self.deletions) as gone,
        ):
            for one in self._noted(entity, self._counted(entity, compared)):
                if isinstance(one, Gone):
                    self.deleted[entity][one.reason] += 1
                    line = DeletedRow(entity, one.key.decode(), one.reason)
                    gone.write([msgspec.json.encode(line)])
                else:
                    self.changed[entity] += 1
                    rows.write([one.row])
        self.files[entity], self.deletions = rows.spooled(), gone.spooled()
        return picker.picked()

    def _judged(self, entity: str, picker: Picker) -> Iterator[tuple[bytes, bytes, Reason | None]]:
        for keys, block in self._snapshot.keyed_blocks(entity):
            yield from zip(keys, block, picker.pick(block), strict=True)
            self._done += len(block)
            self._waiter.report(self._done, self._total)

    def _delivered(self, entity: str) -> Iterator[tuple[bytes, bytes]]:
        if self._base is None:
            return
        seen = 0
        for pair in self._snapshot.delivered(self._base.generation, entity):
            seen += 1
            yield pair
        if seen != self._base.rows.get(entity, 0):
            raise BaseDamagedError

    def _noted(
        self, entity: str, compared: Iterator[ComparedRow | Gone]
    ) -> Iterator[ComparedRow | Gone]:
        """Note every row that belongs; pass on the rows to deliver and the rows to delete."""
        batch: list[tuple[bytes, bytes]] = []
        for one in compared:
            if isinstance(one, ComparedRow):
                batch.append((one.key, one.digest))
                if len(batch) >= _BATCH:
                    self._draft.note(entity, batch)
                    batch = []
                if not one.changed:
                    continue
            yield one
        if batch:
            self._draft.note(entity, batch)

    def _counted(
        self, entity: str, compared: Iterator[ComparedRow | Gone]
    ) -> Iterator[ComparedRow | Gone]:
        """Count the base rows that exported rows refer to, and find the earliest exported row."""
        reader = ReferenceReader(ENTITIES[entity], self._referred)
        own = self._referred.get(entity)
        referred = Ascending(own.ascending()) if own is not None else None
        for one in compared:
            if isinstance(one, ComparedRow):
                if one.changed:
                    day, references = reader.read(one.row)
                    earliest = self.earliest[entity]
                    self.earliest[entity] = day if earliest is None else min(earliest, day)
                    for name, id_ in references:
                        self._referred[name].add(id_)
                elif referred is not None and referred.advance_to(one.key.decode()):
                    self.into_base[entity] += 1
            yield one
