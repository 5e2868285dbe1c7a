"""A damaged partition holds up no other one in the desk, and what the desk lacks is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Expire
from tests.contract.desk_kit import Desk, Reports, new_desk, served
from tests.contract.helpers import damage_embedded, damage_embedded_entry
from tests.unit.rows_kit import uuid
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.violations import Code
from worker.desk import queries, reading
from worker.desk.opening import StoreAccess
from worker.desk.store import RejectionStore
from worker.errors import DamagedLog
from worker.stream import Partition, ProducerRecord

PLACES = "buddy_log_damaged_places"
SKIPPED = "buddy_log_skipped_offsets_total"


@pytest.fixture
def kind() -> str:
    return "embedded"


@pytest.fixture
async def desk(broker: Broker, tmp_path: Path) -> Desk:
    return await new_desk(broker, tmp_path)


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BATCH", 3)
    monkeypatch.setattr(reading, "_STEP_SECONDS", 0.01)


def _user(desk: Desk, number: int, partition: int = 0) -> ProducerRecord:
    made: ProducerRecord = desk.rejection("users", uuid(number), Code.INVALID_ENUM, "role")
    return msgspec.structs.replace(made, partition=partition)


def _row(desk: Desk, number: int, partition: int) -> ProducerRecord:
    return msgspec.structs.replace(desk.row("users", uuid(number)), partition=partition)


def _match(desk: Desk, number: int, user: int) -> ProducerRecord:
    made: ProducerRecord = desk.rejection(
        "matches", uuid(number), Code.ORPHANED_USER_ID, "buddy_id", buddy_id=uuid(user)
    )
    return made


async def _mend(desk: Desk, place: Partition) -> None:
    """Skip the damage, as `buddy log skip` does."""
    assert isinstance(desk.broker, EmbeddedBroker)
    await desk.broker.inspection.skip(await desk.broker.inspection.find(place, None))


async def _damaged_rejections(desk: Desk) -> Partition:
    """Ten users, of which one is behind damage, and one match; four of the users are settled."""
    assert isinstance(desk.broker, EmbeddedBroker)
    place = Partition(desk.names.rejected("users"), 0)
    await desk.publish(*(_user(desk, n) for n in range(5)))
    await desk.publish(_user(desk, 5))  # the batch at offset 5
    await desk.publish(_user(desk, 6))
    await desk.publish(*(_user(desk, n, 1) for n in range(7, 10)), _match(desk, 100, 6))
    await desk.publish(*(desk.row("users", uuid(n)) for n in (0, 6, 7)))
    await damage_embedded(desk.broker, place, 5)
    return place


async def test_damaged_rejections_hold_up_no_others(desk: Desk) -> None:
    place = await _damaged_rejections(desk)
    assert await desk.look() == (9, 7)
    (line,) = desk.missed
    assert line.startswith(f"{place.topic}/0 is damaged from offset 5 up to 6")
    assert line.endswith("its later rejections are missing here, also as causes of orphans")
    await desk.publish(_match(desk, 101, 7), desk.row("users", uuid(8)))
    assert await desk.look() == (10, 7), "the next look goes on, too"


async def test_rejections_behind_damage_are_settled_by_what_was_read_before_them(
    desk: Desk,
) -> None:
    place = await _damaged_rejections(desk)
    await desk.look()
    await _mend(desk, place)
    with capture_logs() as logs:
        assert await desk.look(_states) == {0: "accepted", 6: "accepted", 7: "accepted"}
    (rebuilt,) = (entry for entry in logs if entry["event"] == "desk_rebuilt")
    assert rebuilt["reason"].startswith(
        f"partition 0 of topic {place.topic} is no longer held up by damage: "
    )
    assert await desk.look() == (10, 7)
    assert await desk.look(lambda store: store.damage()) == {}
    assert len(desk.missed) == 1


def _states(store: RejectionStore) -> dict[int, str]:
    found = queries.listed(store, queries.Filter(entity="users"), 100, everything=True)
    return {
        int(one.source.rsplit("/", 1)[1]) - 1: one.state for one in found if one.state != "open"
    }


async def test_damaged_rows_leave_rejections_open_until_they_can_be_read(desk: Desk) -> None:
    assert isinstance(desk.broker, EmbeddedBroker)
    place = Partition(desk.names.accepted("users"), 0)
    await desk.publish(*(_user(desk, n) for n in range(4)))
    await desk.publish(_row(desk, 0, 0))
    await desk.publish(_row(desk, 1, 0))
    await desk.publish(_row(desk, 2, 1))
    await damage_embedded(desk.broker, place, 0)
    assert await desk.look() == (4, 3)
    (line,) = desk.missed
    assert line.startswith(f"{place.topic}/0 is damaged from offset 0")
    assert line.endswith("rejections that its later rows have settled count as open")
    await _mend(desk, place)
    with capture_logs() as logs:
        assert await desk.look() == (4, 2)
    assert not logs, "late rows need no rebuild"


@pytest.mark.parametrize("name", ["rejected.users", "accepted.users", "replays"])
async def test_a_damaged_entry_holds_up_no_other_partition(desk: Desk, name: str) -> None:
    assert isinstance(desk.broker, EmbeddedBroker)
    place = Partition(f"{desk.names.prefix}.{name}", 0)
    await desk.publish(_user(desk, 1), _user(desk, 2, 1))
    await damage_embedded_entry(desk.broker, place)
    await desk.publish(_match(desk, 100, 3))
    records = 2 if name == "rejected.users" else 3
    assert await desk.look() == (records, records)
    (line,) = desk.missed
    assert line.startswith(f"The log's entry of {place.topic}/0 is damaged")
    await _mend(desk, place)
    assert await desk.look() == (3, 3)
    assert len(desk.missed) == 1


async def test_what_must_be_whole_is_refused(desk: Desk) -> None:
    """A replay would send older versions again, and twice."""
    place = await _damaged_rejections(desk)
    with pytest.raises(DamagedLog, match=f"{place.topic}/0 is damaged"):
        await desk.look(whole=True)
    reports = Reports()
    access = StoreAccess(desk.directory, desk.names)
    async with served(desk, reports):
        await reports.until(passes=1)
        with pytest.raises(DamagedLog, match=f"{place.topic}/0 is damaged"):
            await access.up_to_date(desk.broker, whole=True)


async def test_the_service_goes_on_and_tells_the_damage(desk: Desk) -> None:
    place = await _damaged_rejections(desk)
    reports = Reports()
    missed: list[str] = []
    access = StoreAccess(desk.directory, desk.names, missed.append)
    with capture_logs() as logs:
        async with served(desk, reports):
            await reports.until(passes=2)
            (reason,) = reports.reasons()
            assert reason.startswith(f"desk: log: {place.topic}/0 is damaged from offset 5")
            assert reports.value(PLACES) == 1
            await desk.publish(_match(desk, 101, 7))
            async with access.open(desk.broker) as store:  # beside the service
                assert store.database.read_only
                assert len(_listed_matches(store)) == 2
    assert [line.split(" (")[0] for line in missed] == [
        f"{place.topic}/0 is damaged from offset 5 up to 6"
    ]
    assert [entry["offset"] for entry in logs if entry["event"] == "log_damaged"] == [5]
    assert not [entry for entry in logs if entry["event"] == "desk_waits"]


async def test_rejections_that_are_removed_with_the_damage_are_told(
    desk: Desk, empty: Expire
) -> None:
    place = await _damaged_rejections(desk)
    reports = Reports()
    with capture_logs() as logs:
        async with served(desk, reports):
            await reports.until(passes=1)
            await empty(place)
            await desk.publish(_user(desk, 11))
            await reports.until(passes=reports.passes + 2)
            assert reports.value(SKIPPED) == 2
    told = [entry for entry in logs if entry["event"] == "rejections_expired"]
    assert told == [
        {
            "event": "rejections_expired", "log_level": "warning", "topic": place.topic,
            "partition": 0, "count": 2,
        }
    ]  # fmt: skip
    (rebuilt,) = (entry for entry in logs if entry["event"] == "desk_rebuilt")
    assert "no longer held up by damage" in rebuilt["reason"]
    assert await desk.look() == (5, 4)
    assert desk.missed == []


def _listed_matches(store: RejectionStore) -> list[object]:
    return list(queries.listed(store, queries.Filter(entity="matches"), 100, everything=True))
