"""Damage of the embedded log: always found, never passed on, and what can be done about it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.contract.helpers import all_of, empty_embedded, numbered, values
from tests.unit.embedded_kit import HOUR, log_of_format_2, old_log, opened
from worker.brokers.embedded import format as embedded_format
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.damage import Looked
from worker.brokers.embedded.reader import EmbeddedReader
from worker.brokers.embedded.store import FILE_NAME
from worker.brokers.tables import read_checked, read_table
from worker.errors import BuddyError, DamagedLog, MissingTopic, UsageError
from worker.stream import Message, OffsetRange, Partition, ProducerRecord, Topic

pytestmark = pytest.mark.thorough

FLIPS = 3_000 if os.environ.get("BUDDY_HYPOTHESIS") == "long" else 60

PLAIN, TABLE = Topic("plain", 2), Topic("table", 1, compacted=True)
PLACES = [Partition("plain", 0), Partition("plain", 1), Partition("table", 0)]

LOG, OTHER = Partition("log", 0), Partition("log", 1)

Told = dict[Partition, list[Message]]


async def fill(directory: Path) -> Told:
    """A log with small and large batches, some of them compacted and some pages free."""
    dice = random.Random(1)
    async with opened(directory, SettableClock()) as broker:
        await broker.create([PLAIN, TABLE])
        committer = await broker.committer("task", "group")
        for number in range(40):
            size = 20_000 if number % 10 == 0 else 300
            content = dice.randbytes(size)
            await committer.commit(
                [
                    ProducerRecord(p.topic, b"%d" % (number % 7), content, partition=p.number)
                    for p in PLACES
                ],
                {PLACES[0]: number},
            )
            if number == 30:
                await broker.maintain()
        return await tell(broker)


async def tell(broker: EmbeddedBroker) -> Told:
    """Every message of the log. Raises `BuddyError` where it has to say that it is damaged."""
    assert (await broker.topics(["plain", "table"])).keys() == {"plain", "table"}
    spans = await broker.spans(PLACES)
    found: Told = {}
    for place in PLACES:
        reader = broker.reader()
        reader.assign({place: 0})
        messages: list[Message] = []
        while some := await reader.read(1000, 0):
            messages += some
        if damaged := reader.damaged():
            raise BuddyError(damaged[place])
        assert reader.expired() == {}
        assert reader.position(place) == spans[place].end
        found[place] = messages
    return found


@pytest.fixture
async def whole(tmp_path: Path) -> tuple[Path, Told]:
    directory = tmp_path / "whole"
    return directory, await fill(directory)


async def test_a_flipped_byte_is_found_or_changes_nothing(
    whole: tuple[Path, Told], tmp_path: Path
) -> None:
    origin, told = whole
    dice = random.Random(2)
    size = (origin / FILE_NAME).stat().st_size
    found = 0
    for _ in range(FLIPS):
        place, mask = dice.randrange(size), dice.randrange(1, 256)
        directory = tmp_path / "broker"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(origin, directory)
        flip(directory / FILE_NAME, place, mask)
        try:
            async with opened(directory, SettableClock()) as broker:
                assert await tell(broker) == told, f"byte {place} changed by {mask}"
        except BuddyError:
            found += 1
    assert found > FLIPS // 4


# --- One damaged batch ------------------------------------------------------------------------

DAMAGED = (
    "log/0 is damaged from offset 2 up to 4 (the checksum does not fit): 'buddy log skip log/0'"
)


@pytest.fixture
async def broker(tmp_path: Path, clock: SettableClock) -> AsyncIterator[EmbeddedBroker]:
    """Of the eight messages of log/0, in batches of two, the third and fourth are damaged."""
    async with opened(tmp_path / "broker", clock) as broker:
        await broker.create([Topic("log", 2, retention_ms=HOUR)])
        for number in range(0, 8, 2):
            await broker.publish(numbered("log", [number, number + 1]))
        await broker.publish(numbered("log", [0], partition=1))
        await damage(broker)
        yield broker


async def damage(broker: EmbeddedBroker) -> None:
    await run(broker, "UPDATE batches SET content = x'90' WHERE partition = 1 AND base = 2")


async def run(broker: EmbeddedBroker, statement: str, *values: int) -> None:
    await broker._writing.run(lambda connection: connection.execute(statement, values))


async def drain(broker: EmbeddedBroker, position: int = 0) -> tuple[list[int], EmbeddedReader]:
    reader = broker.reader()
    reader.assign({LOG: position, OTHER: 0})
    found = []
    while some := await reader.read(100, 0):
        found += some
    return values([message for message in found if message.partition == 0]), reader


async def test_a_reader_stops_before_it_and_goes_on_elsewhere(broker: EmbeddedBroker) -> None:
    with capture_logs() as logs:
        found, reader = await drain(broker)
        assert await reader.read(100, 0) == []
    assert found == [0, 1]
    assert reader.position(LOG) == 2
    assert reader.position(OTHER) == 1
    assert list(reader.damaged()) == [LOG]
    assert reader.damaged()[LOG].startswith(DAMAGED)
    assert reader.expired() == reader.skipped() == {}
    assert [line["event"] for line in logs] == ["log_damaged"]


async def test_what_one_process_finds_all_can_tell(tmp_path: Path, broker: EmbeddedBroker) -> None:
    assert await broker.damage() == []
    await drain(broker)
    async with opened(tmp_path / "broker") as other:
        (line,) = await other.damage()
    assert line.startswith(DAMAGED)


async def test_skipping_it_loses_it_counted(tmp_path: Path, broker: EmbeddedBroker) -> None:
    _, reader = await drain(broker)
    async with opened(tmp_path / "broker") as other:
        found = await other.inspection.find(LOG, None)
        assert (found.base, found.next) == (2, 4)
        await other.inspection.skip(found)
    assert values(await reader.read(100, 0)) == [4, 5, 6, 7]
    assert reader.damaged() == {}
    assert reader.skipped() == {LOG: 2}
    assert reader.skipped() == {}
    assert await broker.damage() == []
    assert [each.skipped for each in await broker.inspection.known()] == [True]
    later, reader = await drain(broker, 3)
    assert later == [4, 5, 6, 7]
    assert reader.skipped() == {LOG: 1}


@pytest.mark.parametrize("first", [0, 3])
async def test_what_was_found_from_within_it_is_skipped_with_it(
    broker: EmbeddedBroker, first: int
) -> None:
    """Index and store begin to read a few messages before their position."""
    await drain(broker, first)
    await drain(broker, 3 - first)
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert await broker.damage() == []
    assert await broker.skipped() == {LOG: 2}


async def test_a_part_that_was_skipped_is_not_counted_twice(broker: EmbeddedBroker) -> None:
    for start in (3, 0):
        await drain(broker, start)
        await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert await broker.damage() == []
    assert await broker.skipped() == {LOG: 2}


async def test_what_was_skipped_is_known_until_it_has_expired(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    assert await broker.skipped() == {}
    await drain(broker)
    assert await broker.skipped() == {}
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert await broker.skipped() == {LOG: 2}
    clock.advance(2 * HOUR)
    await broker.maintain()
    assert (await broker.spans([LOG]))[LOG].start == 8
    assert await broker.skipped() == {}


@pytest.mark.parametrize("base", [0, 6])
async def test_what_was_skipped_first_or_last_is_known_until_it_has_expired(
    broker: EmbeddedBroker, clock: SettableClock, base: int
) -> None:
    await run(broker, "UPDATE batches SET content = x'90' WHERE partition = 1 AND base = ?", base)
    for offset in (2, base):
        await broker.inspection.skip(await broker.inspection.find(LOG, offset))
    known = await broker.skipped()
    await broker.maintain()
    assert await broker.skipped() == known == {LOG: 4}
    clock.advance(2 * HOUR)
    await broker.maintain()
    assert (await broker.spans([LOG]))[LOG].start == 8
    assert await broker.skipped() == {}


async def test_what_was_removed_from_a_table_is_known(broker: EmbeddedBroker) -> None:
    """Compaction moves no start, so rows may be among it."""
    await broker.create([Topic("table", 1, compacted=True)])
    place = Partition("table", 0)
    await broker.publish(numbered("table", range(4)))
    await broker.maintain()
    assert (await read_checked(broker, place, lambda _, value: value)).holes == 0
    await empty_embedded(broker, place)
    assert (await read_checked(broker, place, lambda _, value: value)).holes == 4


async def test_only_damage_can_be_skipped(broker: EmbeddedBroker) -> None:
    for offset, says in ((0, "not damaged"), (9, "from 0 up to 8")):
        with pytest.raises(UsageError, match=says):
            await broker.inspection.find(LOG, offset)
    await broker.create([Topic("sound", 1)])
    with pytest.raises(UsageError, match="No damage of sound/0 was found"):
        await broker.inspection.find(Partition("sound", 0), None)
    with pytest.raises(MissingTopic):
        await broker.inspection.find(Partition("nothing", 0), 0)
    found = await broker.inspection.find(LOG, 3)
    assert (found.base, found.next) == (3, 4)


async def test_damage_that_nobody_has_recorded_is_found_and_recorded(
    broker: EmbeddedBroker,
) -> None:
    """A command that only reads meets it and says what to do, but may not write."""
    assert await broker.damage() == []
    found = await broker.inspection.find(LOG, None)
    assert [found.line()] == (await broker.damage())[:1]


async def test_what_is_said_of_it_quotes_no_message(broker: EmbeddedBroker) -> None:
    await run(broker, "UPDATE batches SET content = CAST(x'61ff62' AS TEXT) WHERE id = 2")
    _, reader = await drain(broker)
    assert "(the database file is damaged: a column is not of its type)" in reader.damaged()[LOG]


@pytest.mark.parametrize("base", [0, 2, 6])
async def test_a_batch_that_has_vanished_is_damage(broker: EmbeddedBroker, base: int) -> None:
    await run(broker, "DELETE FROM batches WHERE partition = 1 AND base = ?", base)
    seen = {each.base: each.reason for each in (await verified(broker)).damaged}
    assert seen[base] == "the batch is missing"
    assert seen.keys() == {2, base}


@pytest.mark.parametrize("column", ["base", "next", "time", "last_time", "partition", "crc"])
async def test_the_framing_is_under_the_seal(broker: EmbeddedBroker, column: str) -> None:
    await run(broker, f"UPDATE batches SET {column} = {column} + 9 WHERE id = 3")  # noqa: S608
    damaged = (await verified(broker)).damaged
    assert {2, 3, 4, 5} == {n for each in damaged for n in range(each.base, each.next)}


@pytest.mark.parametrize("column", ["start", "next", "last_time", "number", "compacted_to"])
async def test_the_entry_of_a_partition_can_be_made_again(
    broker: EmbeddedBroker, column: str
) -> None:
    await run(broker, f"UPDATE partitions SET {column} = {column} + 9 WHERE id = 1")  # noqa: S608
    if column == "number":  # which partition it was cannot be told
        with pytest.raises(DamagedLog, match="entry of topic log is damaged"):
            await broker.spans([LOG])
        return
    with pytest.raises(DamagedLog, match="entry of log/0 is damaged: 'buddy log skip log/0'"):
        await broker.publish(numbered("log", [8]))
    _, reader = await drain(broker)
    assert list(reader.damaged()) == [LOG]
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert await broker.publish(numbered("log", [8])) == [(0, 8)]
    assert (await drain(broker))[0] == [0, 1]
    assert (await drain(broker, 4))[0] == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("damage", ["crc = crc + 9", "start = 0", "next = 0", "next = -1"])
async def test_an_entry_made_again_reuses_no_offset_of_expired_messages(
    broker: EmbeddedBroker, clock: SettableClock, damage: str
) -> None:
    clock.advance(2 * HOUR)
    await broker.maintain()
    assert await broker.spans([OTHER]) == {OTHER: OffsetRange(1, 1)}
    await run(broker, f"UPDATE partitions SET {damage} WHERE id = 2")  # noqa: S608
    await broker.inspection.skip(await broker.inspection.find(OTHER, None))
    assert await broker.spans([OTHER]) == {OTHER: OffsetRange(1, 1)}


async def test_an_entry_made_again_is_behind_the_positions_of_groups(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await (await broker.committer("task", "group")).commit([], {OTHER: 1})
    clock.advance(2 * HOUR)
    await broker.maintain()
    await run(broker, "UPDATE partitions SET start = 0, next = 0 WHERE id = 2")
    await broker.inspection.skip(await broker.inspection.find(OTHER, None))
    assert await broker.spans([OTHER]) == {OTHER: OffsetRange(1, 1)}


async def test_a_damaged_entry_is_told_beside_a_skipped_batch_at_offset_0(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    await run(broker, "UPDATE batches SET crc = crc + 1 WHERE partition = 1 AND base = 0")
    await drain(broker)
    await broker.inspection.skip(await broker.inspection.find(LOG, 0))
    await run(broker, "UPDATE partitions SET crc = crc + 1 WHERE id = 1")
    with capture_logs() as logs:
        await drain(broker)
        await drain(broker)
    assert [e["reason"][:27] for e in logs if e["event"] == "log_damaged"] == [
        "The log's entry of log/0 is"
    ]
    async with opened(tmp_path / "broker") as other:
        assert any("entry of log/0" in damage.reason for damage in await other.inspection.known())
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert not any("entry" in damage.reason for damage in await broker.inspection.known())
    assert (await broker.skipped())[LOG] == 2  # as before


async def test_damage_that_comes_back_after_a_repair_is_told_again(broker: EmbeddedBroker) -> None:
    for _ in range(2):
        await run(broker, "UPDATE partitions SET next = next + 9 WHERE id = 1")
        with capture_logs() as logs:
            await drain(broker)
            await drain(broker)
        assert [e["topic"] for e in logs if e["event"] == "log_damaged"] == ["log"]
        assert len(await broker.damage()) == 1
        await broker.inspection.skip(await broker.inspection.find(LOG, None))
        assert await broker.damage() == []


async def test_the_entry_of_a_topic_is_never_made_again(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    await run(broker, "UPDATE topics SET name = 'lob'")
    async with opened(tmp_path / "broker") as other:
        for attempt in (other.create([Topic("log", 2)]), other.topics(["log"])):
            with pytest.raises(DamagedLog, match="entry of topic lob is damaged"):
                await attempt
        assert (await verified(other)).file == ["the entry of topic lob is damaged"]


async def test_a_damaged_position_of_a_group_is_none(broker: EmbeddedBroker) -> None:
    committer = await broker.committer("task", "group")
    await committer.commit([], {LOG: 1, OTHER: 1})
    await run(broker, "UPDATE group_offsets SET position = 7 WHERE partition = 1")
    with capture_logs() as logs:
        assert await broker.committed("group", [LOG, OTHER]) == {OTHER: 1}
    assert [line["event"] for line in logs] == ["group_offset_damaged"]


async def test_a_table_that_has_to_be_read_whole_is_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(DamagedLog, match="damaged from offset 2"):
        await read_table(broker, LOG)


async def verified(broker: EmbeddedBroker) -> Looked:
    return await broker.inspection.verify(lambda _: None)


async def test_verify_looks_through_everything(broker: EmbeddedBroker) -> None:
    found = await verified(broker)
    assert [(each.base, each.next, each.skipped) for each in found.damaged] == [(2, 4, False)]
    assert found.batches == 4
    assert found.file == []
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    assert [each.skipped for each in (await verified(broker)).damaged] == [True]


async def test_a_damaged_index_loses_nothing(tmp_path: Path, broker: EmbeddedBroker) -> None:
    await broker.close()
    path = tmp_path / "broker" / FILE_NAME
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page, size) = connection.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_master"
            " WHERE name = 'batches_by_offset'"
        ).fetchone()
    # The entry of partition 1, base 4: a header of three columns, then 1, 4 and the row's id.
    at = path.read_bytes().index(bytes([4, 9, 1, 1, 4, 3]), (page - 1) * size)
    flip(path, at + 4, 64)
    async with opened(tmp_path / "broker") as other:
        found = await other.inspection.find(LOG, 4)
        assert found.reason == "the batch is missing"
        assert (await verified(other)).file
        assert not await other.inspection.skip(found)
        assert (await verified(other)).file == []
        assert (await drain(other, 4))[0] == [4, 5, 6, 7]


# --- Upkeep -----------------------------------------------------------------------------------


async def test_retention_waits_before_it_and_goes_past_it_once_skipped(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    clock.advance(2 * HOUR)
    await broker.maintain()
    assert await broker.spans([LOG, OTHER]) == {LOG: OffsetRange(0, 8), OTHER: OffsetRange(1, 1)}
    await broker.inspection.skip(await broker.inspection.find(LOG, None))
    await broker.maintain()
    assert await broker.spans([LOG]) == {LOG: OffsetRange(8, 8)}
    assert await broker.publish(numbered("log", [8])) == [(0, 8)]
    assert (await drain(broker))[0] == [8]


async def test_compaction_leaves_it_as_it_is(tmp_path: Path, clock: SettableClock) -> None:
    async with opened(tmp_path / "broker", clock) as broker:
        await broker.create([Topic("log", 1, compacted=True)])
        for number in range(0, 8, 2):
            await broker.publish(numbered("log", [number, number + 1]))
        await damage(broker)
        await broker.maintain()
        assert (await verified(broker)).damaged[0][1:3] == (2, 4)
        assert len(await broker.damage()) == 1
        await broker.inspection.skip(await broker.inspection.find(LOG, None))
        await broker.maintain()
        reader = broker.reader()
        reader.assign({LOG: 0})
        assert values(await reader.read(100, 0)) == [7]
        assert reader.skipped() == {LOG: 2}
        found = await verified(broker)
        assert [(each.base, each.next, each.skipped) for each in found.damaged] == [(2, 4, True)]


# --- Formats ----------------------------------------------------------------------------------


async def test_a_log_of_format_1_is_read_and_sealed(tmp_path: Path) -> None:
    old_log(tmp_path)
    async with opened(tmp_path) as broker:
        assert await broker.spans([LOG]) == {LOG: OffsetRange(0, 5)}
        (first,) = await all_of(broker, "log", 1)
        assert (first.offset, first.timestamp, first.key, first.value) == (3, 1_700, b"k", b"v")
        assert await broker.committed("group", [LOG]) == {LOG: 3}
        assert len((await broker.identities(["log"]))["log"]) == 32
        assert (await verified(broker)).damaged == []
        await broker.publish(numbered("log", [1]))
        await run(broker, "UPDATE batches SET content = x'91' WHERE base = 3")
        assert len((await verified(broker)).damaged) == 1


async def test_a_log_of_format_2_is_read_and_any_tombstone_may_be_gone(tmp_path: Path) -> None:
    log_of_format_2(tmp_path, compacted_to=3)
    async with opened(tmp_path) as broker:
        assert await broker.spans([LOG]) == {LOG: OffsetRange(0, 5, 3)}
        found = await all_of(broker, "log", 2)
        assert [(each.key, each.value) for each in found] == [(b"gone", None), (b"k", b"v")]
        assert (await verified(broker)).damaged == []
        assert await broker.publish(numbered("log", [1])) == [(0, 5)]
    async with opened(tmp_path) as broker:
        assert await broker.spans([LOG]) == {LOG: OffsetRange(0, 6, 3)}


async def test_a_damaged_entry_stays_damaged_in_the_new_format(tmp_path: Path) -> None:
    log_of_format_2(tmp_path, compacted_to=3, crc=1)
    async with opened(tmp_path) as broker:
        with pytest.raises(DamagedLog, match="entry of log/0 is damaged"):
            await broker.spans([LOG])
        await broker.inspection.skip(await broker.inspection.find(LOG, None))
        assert await broker.spans([LOG]) == {LOG: OffsetRange(0, 5, 5)}


async def test_a_release_of_format_2_that_still_runs_cannot_write(tmp_path: Path) -> None:
    log_of_format_2(tmp_path, compacted_to=3)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
        read = "SELECT id, topic, number, start, next, last_time, cleaned, crc FROM partitions"
        assert len(old.execute(read).fetchall()) == 1
        async with opened(tmp_path):
            with pytest.raises(sqlite3.OperationalError, match="no such column"):
                old.execute(read)


async def test_damage_that_shows_is_not_sealed(tmp_path: Path) -> None:
    old_log(tmp_path, content=b"\xff\x00")
    async with opened(tmp_path) as broker:
        assert [each.base for each in (await verified(broker)).damaged] == [3]


async def test_a_log_whose_migration_is_cut_off_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(embedded_format, "_fill_gaps", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await EmbeddedBroker(tmp_path).open()
    async with opened(tmp_path) as broker:
        assert len(await all_of(broker, "log", 1)) == 1


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))
