"""Incremental exports on a broker: bookmarks that move with what is published, and no further."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.sink_kit import Sink, csv_rows, fill
from tests.unit.rows_kit import milestone, user, uuid
from worker.errors import StateError
from worker.exports.manifest import Manifest, read_manifest
from worker.exports.verify import verify
from worker.files import Mismatch, expand
from worker.sink.requests import Announcement
from worker.sink.selection.bookmarks import Bookmarks
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import DELIVERED


async def export(sink: Sink, request_id: str, **options: Any) -> tuple[Announcement, Manifest]:
    sink.clock.now += 1_000
    said = await sink.export(request_id, incremental="weekly", **options)
    directory = sink.exports / str(said.directory)
    assert verify(directory).problems == ()
    return said, read_manifest(directory)


async def test_from_the_base_to_an_increment(sink: Sink) -> None:
    await fill(sink)
    async with sink.running():
        first, base = await export(sink, "one")
        await sink.export("between", formats=("csv",))
        await sink.accept("users", user(1, first_name="Again"), user(2), user(9))
        await sink.accept("users", (user(3)[0], None))
        await sink.accept("milestones", milestone(3, 9), milestone(4, 1))
        second, manifest = await export(sink, "two")
        third, last = await export(sink, "three", formats=("json",))
    assert (first.base, first.full_because, first.deletions) == (None, "no_base", {})
    assert base.incremental is not None
    assert base.incremental.base is None
    assert all(file.path != "deletions.ndjson" for file in base.files)

    assert (second.base, second.full_because) == (first.id, None)
    assert {e: n for e, n in (second.counts or {}).items() if n} == {"users": 2, "milestones": 2}
    assert second.deletions == {"users": {"deleted": 1}}
    directory = sink.exports / str(second.directory)
    deletions = (directory / "deletions.ndjson").read_text()
    assert deletions == f'{{"entity":"users","key":"{uuid(3)}","reason":"deleted"}}\n'
    (listed,) = [file for file in second.files if file.path == "deletions.ndjson"]
    assert (listed.rows, listed.bytes) == (1, len(deletions))
    assert [row["id"] for row in csv_rows(directory, "users")] == [uuid(1), uuid(9)]
    made = manifest.incremental
    assert made is not None
    assert made.base is not None
    assert made.base.directory == first.directory
    assert made.base.cut == base.cut
    listing = {e: n for e, n in made.totals.items() if n}
    assert listing == {"users": 4, "matches": 1, "events": 3, "milestones": 3}
    assert made.references_into_base == {}, "both users of the new milestones are here themselves"

    assert third.base == second.id
    assert set((third.counts or {}).values()) == {0}
    assert last.incremental is not None
    assert last.incremental.totals == made.totals
    notices: list[str] = []
    found: list[Mismatch] = []
    sources = expand([directory], None, notices.append, found.append)
    assert sum(1 for source in sources for _ in source.read(mismatch=found.append)) == 4
    assert not found
    assert "deletions.ndjson (1 deletion)" in notices[0]
    paths = [source.path.name for source in sources]
    assert paths == [f"buddy_export_{manifest.export_date[:10]}.json"], "rows can be sent again"


async def test_the_same_request_again_moves_nothing(sink: Sink) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await export(sink, "one", formats=("csv",))
        await sink.accept("users", user(2))
        second, _ = await export(sink, "two", formats=("csv",))
        again, _ = await export(sink, "two", formats=("csv",))
        third, _ = await export(sink, "three", formats=("csv",))
    assert (again.directory, again.base, again.files) == (
        second.directory,
        second.base,
        second.files,
    )
    assert (third.base, (third.counts or {})["users"]) == (second.id, 0)


async def test_an_export_that_fails_leaves_the_bookmark(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        first, _ = await export(sink, "one", formats=("csv",))
        await sink.accept("users", user(2))
        with monkeypatch.context() as patch:
            patch.setattr("worker.exports.write.layout.MANIFEST", "no/such/place")
            await sink.export_request("two", formats=("csv",), incremental="weekly")
            await sink.answer("failed")
        second, _ = await export(sink, "three", formats=("csv",))
    assert (second.base, (second.counts or {})["users"]) == (first.id, 1)


async def test_a_crash_after_publication_moves_the_bookmark_at_the_next_start(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await export(sink, "one", formats=("csv",))
        await sink.accept("users", user(2))
        with monkeypatch.context() as patch:
            settle = Bookmarks.reconcile

            def crash(bookmarks: Bookmarks, published: Any) -> None:
                if len(sink.directories()) > 1:
                    raise StateError("crashed here")
                settle(bookmarks, published)

            patch.setattr(Bookmarks, "reconcile", crash)
            await sink.export_request("two", formats=("csv",), incremental="weekly")
            await sink.answer("finished")
    await sink.accept("users", user(3))
    async with sink.running():
        third, _ = await export(sink, "three", formats=("csv",))
        second, _ = await export(sink, "two", formats=("csv",))
    assert (third.base, (third.counts or {})["users"]) == (second.id, 1)


async def test_other_days_and_a_rebuilt_store_mean_a_full_export(sink: Sink) -> None:
    await sink.accept("users", user(1))
    with capture_logs() as logs:
        async with sink.running():
            await export(sink, "one", formats=("csv",))
            days, _ = await export(sink, "two", formats=("csv",), start="2024-01-01")
        store = RowStore(sink.store, sink.names)
        store.wipe("it was last current 90.0 h ago")
        store.close()
        async with sink.running():
            rebuilt, _ = await export(sink, "three", formats=("csv",), start="2024-01-01")
            last, _ = await export(sink, "four", formats=("csv",), start="2024-01-01")
    assert (days.full_because, (days.counts or {})["users"]) == ("other_options", 1)
    assert (rebuilt.full_because, (rebuilt.counts or {})["users"]) == ("store_rebuilt", 1)
    assert (last.base, (last.counts or {})["users"]) == (rebuilt.id, 0)
    reasons = [entry["reason"] for entry in logs if entry["event"] == "export_full"]
    assert list(dict.fromkeys(reasons)) == ["no_base", "other_options", "store_rebuilt"]


async def test_a_damaged_base_means_a_full_export(sink: Sink) -> None:
    await sink.accept("users", user(1), user(2))
    async with sink.running():
        await export(sink, "one", formats=("csv",))
    store = RowStore(sink.store, sink.names)
    with store.database() as db:
        del db[next(iter(db.keys(from_key=DELIVERED)))]
    store.close()
    async with sink.running():
        said, _ = await export(sink, "two", formats=("csv",))
        last, _ = await export(sink, "three", formats=("csv",))
    assert (said.full_because, (said.counts or {})["users"]) == ("base_damaged", 2)
    assert (last.base, (last.counts or {})["users"]) == (said.id, 0)


async def test_where_the_base_is_gone_the_next_export_is_full(sink: Sink) -> None:
    """The exports of before were put back, without the last one."""
    await sink.accept("users", user(1))
    async with sink.running():
        await export(sink, "one", formats=("csv",))
        await sink.accept("users", user(2))
        gone, _ = await export(sink, "two", formats=("csv",))
        shutil.rmtree(sink.exports / str(gone.directory))
        with capture_logs() as logs:
            said, _ = await export(sink, "three", formats=("csv",))
            last, _ = await export(sink, "four", formats=("csv",))
    assert (said.full_because, (said.counts or {})["users"]) == ("base_gone", 2)
    assert [e["reason"] for e in logs if e["event"] == "export_full"] == ["base_gone"]
    assert (last.base, (last.counts or {})["users"]) == (said.id, 0)


async def test_an_incomplete_export_is_a_base_like_any_other(sink: Sink) -> None:
    sink.patience = 0.2
    await sink.accept("users", user(1))
    await sink.send("users", 1)
    async with sink.running():
        first, _ = await export(sink, "one", formats=("csv",))
        await sink.accept("users", user(2))
        await sink.judge(0, {"users": 1})
        second, _ = await export(sink, "two", formats=("csv",))
    assert (first.complete, second.complete) == (False, True)
    assert (second.base, (second.counts or {})["users"]) == (first.id, 1)
    assert json.loads((sink.exports / str(first.directory) / "manifest.json").read_text())[
        "pending"
    ] == {"users": {"0": 1}}


async def test_after_an_export_of_another_sink_the_next_one_is_full(
    sink: Sink, tmp_path: Path
) -> None:
    other = Sink(sink.broker, sink.names, tmp_path / "other", sink.clock)
    other.exports, other.place = sink.exports, sink.place

    async def by(one: Sink, request_id: str, n: int) -> Announcement:
        await one.accept("users", user(n))
        one.clock.now += 1_000
        await one.export_request(request_id, formats=("csv",), incremental="weekly")
        said = await one.answer("finished")
        while said.request_id != request_id:  # it reads from the first one on
            said = await one.answer("finished")
        return said

    async with sink.running():
        first = await by(sink, "one", 1)
        second = await by(sink, "two", 2)
    async with other.running():
        third = await by(other, "three", 3)
        fourth = await by(other, "four", 4)
    async with sink.running():
        fifth = await by(sink, "five", 5)
    assert (first.full_because, second.base) == ("no_base", first.id)
    assert (third.full_because, (third.counts or {})["users"]) == ("other_sink", 3)
    assert (fourth.base, (fourth.counts or {})["users"]) == (third.id, 1)
    assert (fifth.full_because, (fifth.counts or {})["users"]) == ("other_sink", 5)
