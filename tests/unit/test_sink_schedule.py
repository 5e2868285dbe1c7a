"""Schedules: which slots there are, which is due, and what is written down of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.brokers.contract import Outgoing
from worker.errors import ConfigurationError
from worker.settings import Settings, load
from worker.sink.agenda import RETRY_MS, Agenda, Standing, read_standings
from worker.sink.requests import export_id_of
from worker.sink.schedule import DEFAULTS, Schedule, following, latest, request_of
from worker.topics import Names

NAMES = Names("t")
MONTHLY, WEEKLY = DEFAULTS


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ms(text: str) -> int:
    return int(at(text).timestamp() * 1000)


# --- Slots ----------------------------------------------------------------------------------------


def test_by_default_all_each_month_and_what_has_changed_each_week() -> None:
    start = at("2026-01-15")  # a Thursday
    assert following(MONTHLY, start) == at("2026-02-01T02:00")
    assert following(WEEKLY, start) == at("2026-01-19T03:00")
    assert (MONTHLY.incremental, WEEKLY.incremental) == (False, True)


@pytest.mark.parametrize(
    ("after", "now", "slot"),
    [
        ("2026-01-15", "2026-02-01T01:59:59", None),
        ("2026-01-15", "2026-02-01T02:00:00", "2026-02-01T02:00"),
        ("2026-02-01T02:00", "2026-02-01T02:00:00", None),
        ("2026-02-01T02:00", "2026-02-28T23:00:00", None),
        ("2026-01-15", "2026-06-30T12:00:00", "2026-06-01T02:00"),
        ("2026-01-31T23:59:59.999", "2026-02-01T02:00:00.000001", "2026-02-01T02:00"),
    ],
)
def test_the_latest_slot(after: str, now: str, slot: str | None) -> None:
    assert latest(MONTHLY, at(after), at(now)) == (None if slot is None else at(slot))


moments = st.integers(0, 5 * 366 * 86_400).map(lambda n: at("2024-01-01") + timedelta(seconds=n))
crons = st.builds(
    lambda *parts: " ".join(parts),
    st.sampled_from(["*", "0", "*/7", "5,50"]),
    st.sampled_from(["*", "0", "2-4", "*/5"]),
    st.sampled_from(["*", "1", "29", "L", "*/10"]),
    st.sampled_from(["*", "2", "JAN,JUL"]),
    st.sampled_from(["*", "1", "MON-WED", "0", "7"]),
)


@given(crons, moments, st.timedeltas(timedelta(0), timedelta(days=900)))
def test_the_latest_slot_is_the_last_of_those_that_follow(
    cron: str, after: datetime, length: timedelta
) -> None:
    schedule = Schedule("x", cron)
    now = after + length
    found = latest(schedule, after, now)
    first = following(schedule, after)
    assert (found is None) == (first > now)
    if found is not None:
        assert after < found <= now
        assert first <= found
        assert following(schedule, found) > now
        assert following(schedule, found - timedelta(microseconds=1)) == found


def test_a_slot_stands_for_one_export() -> None:
    slot = at("2026-01-19T03:00")
    request = request_of(WEEKLY, slot)
    assert request.id == "weekly:20260119T030000Z"
    assert request.incremental == "weekly"
    assert export_id_of(request.id) == export_id_of(request_of(WEEKLY, slot).id)
    assert request_of(MONTHLY, slot).incremental is None


# --- Configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cron": "61 * * * *"}, "bad minute"),
        ({"cron": "* * 31 2 *"}, "bad day-of-month"),
        ({"cron": "* * * * * *"}, "write minute, hour"),
        ({"cron": "@daily"}, "write minute, hour"),
        ({"cron": ""}, "write minute, hour"),
        ({"cron": "²L * * * *"}, "bad minute"),
        ({"name": ""}, "1 to 100 of"),
        ({"name": "a b"}, "1 to 100 of"),
        ({"name": "a:b"}, "the name of a bookmark"),
        ({"name": "a\n"}, "1 to 100 of"),
        ({"name": "a" * 65}, "64"),
        ({"entities": ["pets"]}, "unknown entity 'pets'"),
        ({"formats": ["pdf"]}, "pdf"),
        ({"start": "2024-01-01"}, "unknown field"),
    ],
)
def test_a_wrong_schedule_is_one_clear_line(wrong: Mapping[str, Any], says: str) -> None:
    text = msgspec.json.encode([{"name": "x", "cron": "* * * * *", **wrong}]).decode()
    with pytest.raises(ConfigurationError) as raised:
        load(None, {"BUDDY_SCHEDULES": text}, {})
    line = str(raised.value)
    assert says in line
    assert "BUDDY_SCHEDULES" in line
    assert "\n" not in line


def test_two_schedules_of_one_name_are_refused(tmp_path: Any) -> None:
    file = tmp_path / "buddy.toml"
    table = '[[schedules]]\nname = "a"\ncron = "0 2 * * *"\n'
    file.write_text(2 * table)
    with pytest.raises(ConfigurationError, match=r"buddy\.toml: two schedules are called 'a'"):
        load(str(file), {}, {})
    file.write_text(table)
    assert load(str(file), {}, {}).schedules == (Schedule("a", "0 2 * * *"),)
    assert load(str(file), {"BUDDY_SCHEDULES": "[]"}, {}).schedules == ()
    assert Settings().schedules == DEFAULTS


def test_a_variable_that_is_no_json_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BUDDY_SCHEDULES is no JSON"):
        load(None, {"BUDDY_SCHEDULES": "off"}, {})


# --- The agenda -----------------------------------------------------------------------------------


def table_of(messages: list[Outgoing]) -> dict[bytes, bytes]:
    return {m.key: m.value for m in messages if m.key is not None and m.value is not None}


def begun(now: str, table: Mapping[bytes, bytes] | None = None) -> Agenda:
    agenda = Agenda(DEFAULTS, NAMES, table or {})
    agenda.begin(ms(now))
    return agenda


def test_a_first_start_catches_nothing_up() -> None:
    agenda = Agenda(DEFAULTS, NAMES, {})
    noted = agenda.begin(ms("2026-01-15"))
    assert agenda.due(ms("2026-01-15")) is None
    assert {(m.topic, m.partition) for m in noted} == {("t.internal.schedules", 0)}
    assert read_standings(table_of(noted)) == dict.fromkeys(
        ("monthly", "weekly"), Standing(at("2026-01-15"))
    )
    assert Agenda(DEFAULTS, NAMES, table_of(noted)).begin(ms("2026-03-01")) == []


def test_missed_slots_are_caught_up_once_by_whoever_is_active_next() -> None:
    noted = Agenda(DEFAULTS, NAMES, {}).begin(ms("2026-01-15"))
    table = table_of(noted)
    agenda = begun("2026-06-10T12:00", table)
    ran = []
    while (due := agenda.due(ms("2026-06-10T12:00"))) is not None:
        ran.append(due.request.id)
        table |= table_of([agenda.settled(due, "an-id")])
        agenda.settle(due)
    assert ran == ["weekly:20260608T030000Z", "monthly:20260601T020000Z"], "longest overdue first"
    assert begun("2026-06-10T12:01", table).due(ms("2026-06-10T12:01")) is None
    assert begun("2026-06-10", table).next() == {
        "monthly": at("2026-07-01T02:00"),
        "weekly": at("2026-06-15T03:00"),
    }
    assert read_standings(table)["weekly"] == Standing(at("2026-06-08T03:00"), "an-id")


def test_what_is_due_says_all_that_is_asked_for() -> None:
    agenda = begun("2026-01-15")
    due = agenda.due(ms("2026-01-19T03:00"))
    assert due is not None
    assert due.request.formats == ("csv", "json", "xlsx")
    assert len(due.request.entities) == 8


def test_a_slot_that_failed_is_tried_again_and_holds_up_no_other() -> None:
    agenda = begun("2026-01-25")
    now = ms("2026-02-02T04:00")
    first = agenda.due(now)
    assert first is not None
    assert first.schedule.name == "weekly"
    agenda.postpone(first, now)
    second = agenda.due(now)
    assert second is not None
    assert second.schedule.name == "monthly"
    agenda.settle(second)
    assert agenda.due(now + RETRY_MS - 1) is None
    assert agenda.due(now + RETRY_MS) == first
    assert agenda.next()["weekly"] == at("2026-01-26T03:00"), "overdue since"


def test_a_clock_that_goes_back_makes_nothing_due() -> None:
    agenda = begun("2026-02-10")
    assert agenda.due(ms("2026-01-01")) is None


def test_what_cannot_be_read_counts_as_a_first_start() -> None:
    table = {b"weekly": b"{", b"\xff": b"{}", b"monthly": b'{"until":"2026-01-01T00:00:00"}'}
    assert read_standings(table) == {}
    assert len(Agenda(DEFAULTS, NAMES, table).begin(ms("2026-01-15"))) == 2


@given(st.lists(st.tuples(st.integers(0, 40 * 24 * 60), st.booleans()), max_size=20))
def test_no_slot_is_settled_twice_and_none_is_settled_out_of_order(
    steps: list[tuple[int, bool]],
) -> None:
    schedule = Schedule("x", "0 */6 * * *")
    now = ms("2026-01-01")
    agenda = Agenda([schedule], NAMES, {})
    table = table_of(agenda.begin(now))
    settled: list[datetime] = []
    for minutes, crash in steps:
        now += minutes * 60_000
        due = agenda.due(now)
        if due is not None:
            table |= table_of([agenda.settled(due, "x")])
            settled.append(due.slot)
            agenda.settle(due)
            assert now - int(due.slot.timestamp() * 1000) < 6 * 3600 * 1000
        assert agenda.due(now) is None
        if crash:
            agenda = Agenda([schedule], NAMES, table)
            assert agenda.begin(now) == []
    assert settled == sorted(set(settled))
