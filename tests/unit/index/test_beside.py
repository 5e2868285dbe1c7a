"""What the index keeps of topics that it is not made of: saved though nothing comes any more."""

from __future__ import annotations

from pathlib import Path

from worker.index.store import IndexStore
from worker.stream import Message, Partition

PROGRESS = Partition("b.internal.progress", 0)


def progress(offset: int) -> Message:
    return Message(PROGRESS.topic, 0, offset, 0, b"0", b"%d" % offset)


def test_what_was_read_last_is_saved_while_nothing_comes(tmp_path: Path) -> None:
    store = IndexStore(tmp_path / "index", map_size=256 * 1024)
    store.open()
    store.beside([progress(0)], "one", 1_000)
    store.beside([progress(1)], "one", 2_000)  # too soon to be saved by itself
    for now in range(2_500, 10_000, 500):
        store.stamp(now)
    store._env.close()  # as a kill does: nothing is saved any more
    again = IndexStore(tmp_path / "index", map_size=256 * 1024)
    again.open()
    assert again.saved().beside[PROGRESS].position == 2
    again.close()
