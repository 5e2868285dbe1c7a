"""Opens the database of the store. One that cannot be used is replaced with an empty one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, cast

import msgspec
import structlog
from rocksdict import Rdict, WriteBatch

from schemas import ENTITIES
from worker.core.topics import Names
from worker.errors import StateError, StateLost
from worker.index.tails import Tail
from worker.sink.store import positions as saved_positions
from worker.sink.store import rocks
from worker.sink.store.snapshot import BOOKMARK
from worker.stream import Partition

FORMAT: Final = 2

STATE_KEY: Final = b"mstate"
TOPICS_KEY: Final = b"mtopics"
TOMBSTONES_KEY: Final = b"mtombstones"
_MADE_FOR_KEY: Final = b"mformat"
_LOST_KEY: Final = b"mlost"

_log = structlog.get_logger(__name__)


class MadeFor(msgspec.Struct, frozen=True):
    """What the store was made for. With other `columns`, rows set aside may be readable now."""

    format: int
    prefix: str
    entities: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]


class StoreState(msgspec.Struct, frozen=True):
    """Counts of rows, and the time (ms) until which the store is known to be complete.

    `identities` are those of the topics that the positions belong to.
    """

    rows: dict[str, int]
    foreign: dict[str, int]
    last_current: int | None = None
    identities: dict[str, str] = {}


class Lost(msgspec.Struct, frozen=True):
    """The bookmarks that rebuilds of the store took away, and the reason for the last rebuild.

    `names` is None if they could not be read.
    """

    reason: str
    names: tuple[str, ...] | None


class Content(NamedTuple):
    """What a database has besides the rows."""

    state: StoreState
    positions: dict[Partition, int]
    tails: dict[Partition, Tail]
    topics: Mapping[str, str]
    """The last seen identities of the sink's topics other than the accepted ones."""
    lost: Lost | None
    tombstones: Mapping[Partition, int]
    """See `SavedIndex.tombstones`."""


class Opened(NamedTuple):
    """An open database; `rebuilt` says why it was emptied, if it was."""

    db: Rdict
    content: Content
    rebuilt: str | None = None


def made_for_names(names: Names) -> MadeFor:
    """What a store of topics with these names is made for, by this release."""
    columns = (tuple(column.name for column in entity.columns) for entity in ENTITIES.values())
    return MadeFor(FORMAT, names.prefix, tuple(ENTITIES), tuple(columns))


def open_database(directory: Path, made_for: MadeFor) -> Opened:
    """Open or create the database of the store in `directory`. Raises `StateError`.

    It is replaced if it is damaged, or if it was made for something else than `made_for`.
    """
    rows = directory / "rows"
    rocks.make_directory(directory)
    rocks.make_room(rows)
    is_new = not (rows / "CURRENT").exists()
    db: Rdict | None = None
    loaded = _Loaded()
    try:
        db = rocks.open_database(rows)
        with rocks.guard(directory):
            if is_new:
                loaded.content = _begin(db, made_for, loaded.content)
            else:
                _load(db, made_for, loaded)
    except StateLost as error:
        return replace_database(directory, made_for, db, str(error), loaded.content)
    return Opened(db, loaded.content)


def replace_database(
    directory: Path, made_for: MadeFor, db: Rdict | None, reason: str, before: Content
) -> Opened:
    """Replace the database with an empty one, and remember the bookmarks that it had.

    `before` is what is known of its content. Raises `StateError`.
    """
    names = None if db is None else _bookmarks(db, before.lost)
    if db is not None:
        rocks.close(db)
    _log.warning("sink_store_rebuilt", reason=reason)
    rows = directory / "rows"
    rocks.destroy(rows)
    rocks.make_directory(rows)
    content = _empty()._replace(topics=before.topics, lost=Lost(reason, names))
    try:
        db = rocks.open_database(rows)
        with rocks.guard(directory):
            return Opened(db, _begin(db, made_for, content), reason)
    except StateLost as error:
        raise StateError(f"{error}, but that does not help: look at its disk") from None


def _empty() -> Content:
    return Content(StoreState({}, {}), {}, {}, {}, None, {})


class _Loaded:
    """What a database has said of itself so far; `content` is complete once `_load` returns."""

    def __init__(self) -> None:
        self.content = _empty()


def _load(db: Rdict, made_for: MadeFor, loaded: _Loaded) -> None:
    """Load the content of the database. Raises StateLost if it cannot be used."""
    decode, replace = msgspec.msgpack.decode, msgspec.structs.replace
    try:
        found = decode(db.get(_MADE_FOR_KEY) or b"", type=MadeFor)
        if replace(found, columns=()) != replace(made_for, columns=()):
            raise StateLost("its format, topic prefix or entities are others")
        state = decode(db.get(STATE_KEY) or b"", type=StoreState)
        loaded.content = loaded.content._replace(state=state)
        lost = decode(db.get(_LOST_KEY) or b"\xc0", type=Lost | None)
        loaded.content = loaded.content._replace(lost=lost)
        topics = decode(db.get(TOPICS_KEY) or b"\x80", type=dict[str, str])
        loaded.content = loaded.content._replace(topics=topics)
        tombstones = decode(db.get(TOMBSTONES_KEY) or b"\x90", type=list[tuple[str, int, int]])
        gone = {Partition(topic, number): to for topic, number, to in tombstones}
        loaded.content = loaded.content._replace(tombstones=gone)
    except msgspec.MsgspecError:
        raise StateLost("it is damaged (what it says of itself cannot be read)") from None
    if found.columns != made_for.columns:
        if state.foreign:
            raise StateLost("columns changed and rows had been set aside")
        db[_MADE_FOR_KEY] = msgspec.msgpack.encode(made_for)
    try:
        positions, tails = saved_positions.load(db)
    except ValueError as error:
        raise StateLost(f"it is damaged ({error})") from None
    loaded.content = loaded.content._replace(positions=positions, tails=tails)


def _begin(db: Rdict, made_for: MadeFor, content: Content) -> Content:
    """Begin with an empty database."""
    first = WriteBatch(raw_mode=True)
    first[_MADE_FOR_KEY] = msgspec.msgpack.encode(made_for)
    first[STATE_KEY] = msgspec.msgpack.encode(content.state)
    if content.lost is not None:
        first[_LOST_KEY] = msgspec.msgpack.encode(content.lost)
    first[TOPICS_KEY] = msgspec.msgpack.encode(content.topics)
    db.write(first)
    return content


def _bookmarks(db: Rdict, lost: Lost | None) -> tuple[str, ...] | None:
    """Names of the bookmarks in a database, and of those lost before; None if unreadable."""
    if lost is not None and lost.names is None:
        return None
    try:
        found = [
            cast("bytes", key)[1:].decode()
            for key in db.keys(from_key=BOOKMARK, read_opt=rocks.until(rocks.after(BOOKMARK)))
        ]
    except Exception:  # noqa: BLE001 -- rocksdict raises nothing more precise
        return None
    return tuple(sorted({*found, *(lost.names or () if lost is not None else ())}))
