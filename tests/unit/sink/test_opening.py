"""What a store that cannot be used has said of itself is not forgotten."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from worker.core.topics import Names
from worker.errors import StateLost
from worker.sink.store.opening import Lost, StoreState, _load, _Loaded, made_for_names

STAMP = made_for_names(Names("t"))
LOST = Lost("its disk was full", None)
encode = msgspec.msgpack.encode


class Rows(dict[bytes, bytes]):
    """A database whose positions cannot be read."""

    def values(self, *_: Any, **__: Any) -> Any:
        raise StateLost("a block is damaged")

    items = values


@pytest.mark.parametrize(
    "topics", [b"\xff", encode({"t.exports": "one"})], ids=["garbage", "sound"]
)
def test_bookmarks_that_were_lost_before_stay_known(topics: bytes) -> None:
    db: Any = Rows(
        {
            b"mformat": encode(STAMP),
            b"mstate": encode(StoreState({}, {})),
            b"mlost": encode(LOST),
            b"mtopics": topics,
        }
    )
    loaded = _Loaded()
    with pytest.raises(StateLost):
        _load(db, STAMP, loaded)
    assert loaded.content.lost == LOST
    assert loaded.content.topics == ({} if topics == b"\xff" else {"t.exports": "one"})
