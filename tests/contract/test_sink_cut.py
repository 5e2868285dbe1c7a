"""The cut of an export: all that had entered is judged, and the rows are those of its offsets."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas import ENTITIES
from tests.contract.broker_kit import Another, Clock, unique
from tests.contract.sink_kit import PARTITIONS, Sink, fill
from tests.unit.rows_kit import match, user, uuid
from tests.unit.sink_kit import checkin
from worker.brokers.contract import Broker
from worker.exports.manifest import read_manifest
from worker.sink import answers, judged
from worker.stream import Partition, ProducerRecord

# --- Judged ---------------------------------------------------------------------------------------


async def test_what_had_entered_is_waited_for(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_REPORT_SECONDS", 0.01)
    await sink.send("users", 3)
    await sink.judge(0, {"users": 1}, {"users": 3})
    async with sink.running():
        await sink.export_request("a")
        while (progress := (await sink.answer("progress")).progress) is None or (
            progress.stage != "judge"  # the place is asked first
        ):
            pass
        assert progress.done == 4
        await sink.accept("users", user(1))
        await sink.judge(0, {"users": 3})
        said = await sink.answer("finished")
    assert (said.complete, said.pending, (said.counts or {})["users"]) == (True, {}, 1)
    manifest = read_manifest(sink.exports / str(said.directory))
    assert manifest.cut.judged == {e: {0: 0, 1: 0} for e in ENTITIES} | {"users": {0: 3, 1: 0}}
    assert (manifest.complete, manifest.pending) == (True, {})


async def test_what_is_not_judged_in_time_is_named(sink: Sink) -> None:
    sink.patience = 0.3
    await sink.accept("users", user(1))
    await sink.send("users", 3, partition=1)
    await sink.send("checkins", 2)
    await sink.judge(1, {"users": 2}, {"users": 3})
    with capture_logs() as logs:
        async with sink.running():
            said = await sink.export("a", formats=("csv",))
    assert said.complete is False
    assert said.pending == {"users": {1: 1}, "checkins": {0: 2}}
    assert (said.counts or {})["users"] == 1
    manifest = read_manifest(sink.exports / str(said.directory))
    assert (manifest.complete, manifest.pending) == (False, said.pending)
    assert manifest.cut.judged["users"] == {0: 0, 1: 2}
    (entry,) = [entry for entry in logs if entry["event"] == "export_incomplete"]
    assert entry["pending"] == 3


@pytest.mark.parametrize("silent", [0, 8])
async def test_the_latest_progress_is_found_wherever_it_lies(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    monkeypatch.setattr(judged, "_TAIL", 4)
    await sink.send("users", 2)
    await sink.send("users", 2, partition=1)
    for read in (1, 1, 1, 1, 1, 2):
        await sink.judge(1, {"users": read})
    await sink.judge(0, {"users": 2})
    topic = sink.names.progress  # what is no progress, as gaps are none
    await sink.broker.publish([ProducerRecord(topic, b"0", None, partition=0)] * silent)
    async with sink.running():
        said = await sink.export("a", formats=("csv",))
    assert said.complete is True


# --- Exactly its offsets --------------------------------------------------------------------------


async def rows_at(sink: Sink, cut: dict[str, dict[int, int]]) -> dict[str, list[Any]]:
    """What the accepted topics come to, read up to these offsets only."""
    found = {}
    for entity, offsets in cut.items():
        held: dict[bytes, bytes | None] = {}
        places = {Partition(sink.names.accepted(entity), q): end for q, end in offsets.items()}
        reader = sink.broker.reader()
        reader.assign(dict.fromkeys(places, 0))
        while any(reader.position(place) < end for place, end in places.items()):
            for message in await reader.read(1_000, 0.1):
                if message.offset < offsets[message.partition]:
                    held[message.key or b""] = message.value
        await reader.close()
        found[entity] = [json.loads(row) for _, row in sorted(held.items()) if row is not None]
    return found


async def test_an_export_in_the_midst_of_traffic_holds_the_rows_of_its_offsets(
    sink: Sink, another: Another
) -> None:
    other = await another()
    committer = await other.committer(unique("writer"), unique("group"))
    stop = asyncio.Event()

    async def write() -> None:
        """Users, matches and check-ins that come together, in one transaction each time."""
        names = sink.names
        for n in count():
            rows = {"checkins": checkin(n, n, "2024-01-01", notes=f"v{n}")}
            rows |= {"matches": match(n, n, n), "users": user(n)}
            messages = [
                ProducerRecord(names.accepted(e), key, row) for e, (key, row) in rows.items()
            ]
            again = checkin(n // 2, n // 2, "2024-01-02", notes=f"v{n}")
            messages.append(ProducerRecord(names.accepted("checkins"), *again))
            await committer.commit(messages, {})
            if stop.is_set():
                return

    writing = asyncio.create_task(write())
    try:
        async with sink.running():
            for n in range(6):
                said = await sink.export(f"e{n}", formats=("json",))
                assert (said.left_out, said.kept_without) == ({}, {}), "no reference is lacking"
                directory = sink.exports / str(said.directory)
                (path,) = directory.glob("buddy_*.json")
                content = json.loads(path.read_text())
                cut = read_manifest(directory).cut.accepted
                expected = await rows_at(sink, cut)
                assert {entity: content[entity] for entity in ENTITIES} == expected
    finally:
        stop.set()
        await writing
        await committer.close()


async def test_consumption_goes_on_after_the_cut(sink: Sink) -> None:
    async with sink.running():
        for n in range(1, 4):
            await sink.accept("users", user(n))
            await sink.accept("matches", match(10 + n, n, n))
            said = await sink.export(f"e{n}", formats=("csv",))
            assert Counter(said.counts) == Counter({"users": n, "matches": n})


async def test_the_same_cut_and_options_give_the_same_bytes(
    sink: Sink, broker: Broker, clock: Clock, tmp_path: Path
) -> None:
    await fill(sink)
    exports: dict[str, Any] = {}
    for name in ("one", "other"):
        one = Sink(broker, sink.names, tmp_path / name, Clock())
        one.clock.now = clock.now + 1_800_000 * len(exports)
        await sink.export_request("same", formats=("csv", "json"), end="2024-12-31")
        async with one.running():
            said = await sink.answer("finished")
        directory = one.exports / str(said.directory)
        manifest = read_manifest(directory)
        texts = {}
        for file in manifest.files[:-1]:  # the last one names their SHA-256, dates included
            day = manifest.export_date[:10]
            text = (directory / file.path).read_text()
            text = text.replace(manifest.export_date, "DATE")
            texts[file.path.replace(day, "DAY")] = text
        exports[name] = (manifest.cut, texts)
    assert exports["one"] == exports["other"]
    assert len(exports["one"][1]) == len(ENTITIES) + 2


# --- Days -----------------------------------------------------------------------------------------


async def test_days_that_were_asked_for(sink: Sink) -> None:
    await sink.accept("users", *(user(n, joined_at=f"2024-01-0{n}T23:59:59Z") for n in (1, 2, 3)))
    await sink.accept("matches", match(11, 1, 3, matched_at="2024-01-02T00:00:00Z"))
    async with sink.running():
        said = await sink.export("a", formats=("json",), start="2024-01-02", end="2024-01-02")
    assert {e: n for e, n in (said.counts or {}).items() if n} == {"users": 3, "matches": 1}
    directory = sink.exports / str(said.directory)
    (path,) = directory.glob("buddy_*.json")
    content = json.loads(path.read_text())
    days = {"start": "2024-01-02", "end": "2024-01-02"}
    assert content["export_metadata"]["date_range"] == days
    options = json.loads((directory / "manifest.json").read_text())["options"]
    assert {name: options[name] for name in days} == days
    assert [row["id"] for row in content["users"]] == [uuid(n) for n in (1, 2, 3)]
    assert len(read_manifest(directory).cut.accepted["users"]) == PARTITIONS


async def test_the_same_id_with_other_days_is_refused(sink: Sink) -> None:
    async with sink.running():
        await sink.export("again", formats=("csv",), start="2024-01-02")
        await sink.export_request("again", formats=("csv",), start="2024-01-03")
        said = await sink.answer("failed")
        assert "ask under another id" in (said.error or "")
        await sink.export("again", formats=("csv",), start="2024-01-02")
    assert len(sink.directories()) == 1
