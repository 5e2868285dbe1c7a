"""A small world of rows for the tests of exports, its histories, and what an export of it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.export_kit import metadata_of
from tests.unit.rows_kit import canonical, match, message, user, uuid
from worker.exports.manifest import Incremental, Options, Origin, build
from worker.exports.order import order_of
from worker.exports.places.place import Finished
from worker.sink.selection.plan import LEVELS, Selection
from worker.sink.selection.spool import Spooled, Waiter, spool
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import Snapshot

DAYS = tuple(f"2024-01-{day:02}" for day in range(1, 8))
KINDS = ("users", "matches", "skill_sessions", "checkins")

Change = tuple[str, bytes, bytes | None]
"""Entity, key, row; None deletes it."""
Rows = Mapping[str, Mapping[bytes, bytes]]


def session(n: int, teacher: int, learner: int, of: int | None, day: str) -> tuple[bytes, bytes]:
    fields: dict[str, Any] = {
        "session_id": uuid(n),
        "skill_id": 42,
        "skill_name": "Chess",
        "teacher_id": uuid(teacher),
        "learner_id": uuid(learner),
        "completed_at": f"{day}T23:59:59.999999Z",
    }
    return canonical("skill_sessions", fields if of is None else fields | {"match_id": uuid(of)})


def checkin(n: int, of: int, day: str, **more: Any) -> tuple[bytes, bytes]:
    row = {"checkin_id": uuid(n), "match_id": uuid(of), "checkin_date": f"{day}T00:00:00Z"}
    return canonical("checkins", row | more)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """One insert, update, repeat or deletion in a world of few keys."""
    entity = draw(st.sampled_from(KINDS))
    n, day = draw(st.integers(1, 4)), draw(st.sampled_from(DAYS))
    one, other = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    of = draw(st.integers(11, 14))
    if entity == "users":
        name = draw(st.sampled_from(["Alice", "Bob"]))
        key, row = user(n, first_name=name, joined_at=f"{day}T12:00:00Z")
    elif entity == "matches":
        key, row = match(10 + n, one, other, matched_at=f"{day}T00:00:00Z")
    elif entity == "checkins":
        key, row = checkin(20 + n, of, day)
    else:
        key, row = session(30 + n, one, other, draw(st.sampled_from([None, of])), day)
    return entity, key, draw(st.sampled_from([row, row, row, None]))


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    """Some entities, some days."""
    chosen = draw(st.sets(st.sampled_from(KINDS), min_size=1) | st.just(set(KINDS)))
    start, end = draw(st.tuples(*[st.none() | st.sampled_from(DAYS)] * 2))
    if start and end and end < start:
        start, end = end, start
    entities = tuple(name for name in ENTITIES if name in chosen)
    return Selection(entities, type(Selection(()).days)(start, end))


class World:
    """A store that changes, and beside it what it ought to hold."""

    def __init__(self, directory: Path, names: Any) -> None:
        self.store = RowStore(directory, names)
        self.rows: dict[str, dict[bytes, bytes]] = {name: {} for name in ENTITIES}
        self._offset = 0

    def apply(self, history: list[Change]) -> None:
        messages = []
        for entity, key, row in history:
            messages.append(message(entity, self._offset, key, row))
            self._offset += 1
            self.rows[entity].pop(key, None)
            if row is not None:
                self.rows[entity][key] = row
        self.store.apply(messages, {})

    def full(self, selection: Selection) -> dict[str, dict[bytes, bytes]]:
        """What a full export holds, by the words of the contract and the slowest way there is."""
        belongs: dict[str, dict[bytes, bytes]] = {}
        wanted: set[tuple[str, str]] = set()
        for entity in (name for level in LEVELS for name in level):
            if entity not in selection.entities:
                continue
            found = {}
            for key, row in self.rows[entity].items():
                if self.date_in(selection, entity, row) or (entity, key.decode()) in wanted:
                    if self.lacks_user(entity, row):
                        continue
                    found[key] = row
                    wanted |= references(entity, row)
            belongs[entity] = dict(sorted(found.items()))
        return {entity: belongs[entity] for entity in selection.entities}

    def date_in(self, selection: Selection, entity: str, row: bytes) -> bool:
        day = str(json.loads(row)[ENTITIES[entity].date])[:10]
        return (selection.days.start or "0") <= day <= (selection.days.end or "9999")

    def lacks_user(self, entity: str, row: bytes) -> bool:
        return any(
            name == "users" and id_.encode() not in self.rows["users"]
            for name, id_ in references(entity, row)
        )


def references(entity: str, row: bytes) -> set[tuple[str, str]]:
    """What a row refers to: entity and id."""
    held = json.loads(row)
    return {
        (column.refers_to, held[column.name])
        for column in ENTITIES[entity].columns
        if column.refers_to is not None and column.name in held
    }


def spooled(snapshot: Snapshot, selection: Selection, directory: Path) -> Spooled:
    """The pass of a full export that nobody watches."""
    directory.mkdir(parents=True)
    return spool(snapshot, selection, directory, UNWATCHED)


UNWATCHED = Waiter(lambda _done, _total: None, lambda: False)


def read_spooled(found: Spooled) -> dict[str, list[bytes]]:
    return {entity: file.path.read_bytes().splitlines() for entity, file in found.files.items()}


def finished(
    export_id: str, bookmark: str, second: int = 0, *, scheduled: bool = False
) -> Finished:
    """An export at the place, as far as bookmarks look at it."""
    origin = Origin(incremental=Incremental(name=bookmark))
    options = Options(entities=(), formats=(), incremental=bookmark, scheduled=scheduled)
    manifest = build(metadata_of({}), options, origin, (), {}, ())
    name = f"20251122T1030{second:02}Z_{export_id}"
    return Finished(name, f"/exports/{name}", manifest, f"hash of {export_id}", order_of(name))
