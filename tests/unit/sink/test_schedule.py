"""Schedules: which slots there are, which is due, and what is written down of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.settings import Settings, load
from worker.core.moments import Moment
from worker.core.topics import Names
from worker.errors import ConfigurationError
from worker.sink.agenda import RETRY_MS, Agenda, Standing, read_standing, read_standings
from worker.sink.requests import export_id_of, fill_in, options_of
from worker.sink.schedule import DEFAULTS, Schedule, following, is_slot_of, latest, request_of
from worker.stream import ProducerRecord

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
    assert request.incremental == "schedule:weekly", "which no message can name"
    asked = options_of(fill_in(request))
    assert (asked.incremental, asked.scheduled) == ("weekly", True), "what a consumer sees"
    assert export_id_of(request.id) == export_id_of(request_of(WEEKLY, slot).id)
    assert request_of(MONTHLY, slot).incremental is None


@pytest.mark.parametrize(
    ("request_id", "is_one"),
    [
        ("weekly:20260119T030000Z", True),
        ("weekly:20260119T030000Z ", False),
        ("weekly:mine", False),
        ("weekly", False),
        ("other:20260119T030000Z", False),
    ],
)
def test_ids_of_slots_are_told_from_others(request_id: str, is_one: bool) -> None:
    assert is_slot_of(WEEKLY, request_id) == is_one


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
        ({"name": ""}, "no name of a schedule: use 1 to 64 of"),
        ({"name": "a b"}, "no name of a schedule: use 1 to 64 of"),
        ({"name": "a:b"}, "no name of a schedule: use"),
        ({"name": "a\n"}, "no name of a schedule: use 1 to 64 of"),
        ({"name": "a" * 65}, "no name of a schedule: use"),
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


def now(text: str, steady: int = 0) -> Moment:
    return Moment(ms(text), steady)


def table_of(messages: list[ProducerRecord]) -> dict[bytes, bytes]:
    return {m.key: m.value for m in messages if m.key is not None and m.value is not None}


def begun(moment: str, table: Mapping[bytes, bytes] | None = None) -> Agenda:
    agenda = Agenda(DEFAULTS, NAMES, table or {})
    agenda.begin(now(moment))
    return agenda


def test_a_first_start_catches_nothing_up() -> None:
    start = at("2026-01-15")
    agenda = Agenda(DEFAULTS, NAMES, {})
    noted = agenda.begin(now("2026-01-15"))
    assert agenda.due(now("2026-01-15")) is None
    assert {(m.topic, m.partition) for m in noted} == {("t.internal.schedules", 0)}
    assert read_standings(table_of(noted)) == dict.fromkeys(
        ("monthly", "weekly"), Standing(start, None, ((start, start),))
    )
    assert Agenda(DEFAULTS, NAMES, table_of(noted)).begin(now("2026-03-01")) == []


def test_missed_slots_are_caught_up_once_by_whoever_is_active_next() -> None:
    noted = Agenda(DEFAULTS, NAMES, {}).begin(now("2026-01-15"))
    table = table_of(noted)
    agenda = begun("2026-06-10T12:00", table)
    ran = []
    while (due := agenda.due(now("2026-06-10T12:00"))) is not None:
        ran.append(due.request.id)
        table |= table_of([agenda.message_of(due, "an-id")])
        agenda.note_done(due, "an-id")
    assert ran == ["weekly:20260608T030000Z", "monthly:20260601T020000Z"], "longest overdue first"
    assert begun("2026-06-10T12:01", table).due(now("2026-06-10T12:01")) is None
    assert begun("2026-06-10", table).next() == {
        "monthly": at("2026-07-01T02:00"),
        "weekly": at("2026-06-15T03:00"),
    }
    start, slot = at("2026-01-15"), at("2026-06-08T03:00")
    assert read_standings(table)["weekly"] == Standing(
        slot, "an-id", ((start, start), (slot, slot)), slot
    )


def test_what_is_due_says_all_that_is_asked_for() -> None:
    agenda = begun("2026-01-15")
    due = agenda.due(now("2026-01-19T03:00"))
    assert due is not None
    assert due.request.formats == ("csv", "json", "xlsx")
    assert len(due.request.entities) == 8


def test_a_slot_that_failed_is_tried_again_and_holds_up_no_other() -> None:
    agenda = begun("2026-01-25")
    moment = now("2026-02-02T04:00", 5)
    first = agenda.due(moment)
    assert first is not None
    assert first.schedule.name == "weekly"
    agenda.postpone(first, moment)
    second = agenda.due(moment)
    assert second is not None
    assert second.schedule.name == "monthly"
    agenda.note_done(second, "x")
    assert agenda.due(now("2026-02-02T04:00", 5 + RETRY_MS - 1)) is None
    assert agenda.due(now("2026-02-02T04:00", 5 + RETRY_MS)) == first
    assert agenda.next()["weekly"] == at("2026-01-26T03:00"), "overdue since"


@pytest.mark.parametrize("wall", ["2026-01-01", "2026-02-02T04:00", "2026-02-03T04:00"])
def test_how_long_a_slot_waits_is_measured_by_the_steady_clock(wall: str) -> None:
    agenda = Agenda([WEEKLY], NAMES, {})
    agenda.begin(now("2026-01-25"))
    due = agenda.due(now("2026-02-02T04:00", 5))
    assert due is not None
    agenda.postpone(due, now("2026-02-02T04:00", 5))
    assert agenda.due(now(wall, 5 + RETRY_MS - 1)) != due
    agenda.correct(now(wall))
    assert agenda.due(now("2026-02-02T04:00", 5 + RETRY_MS)) == due


def test_a_slot_that_failed_does_not_hold_up_the_next_one_of_its_schedule() -> None:
    """It was postponed for longer than that one is away."""
    agenda = Agenda([Schedule("often", "*/5 * * * *")], NAMES, {})
    agenda.begin(now("2026-01-01T00:01"))
    failed = agenda.due(now("2026-01-01T00:05"))
    assert failed is not None
    agenda.postpone(failed, now("2026-01-01T00:05"))
    assert agenda.due(now("2026-01-01T00:09", 240_000)) is None
    following = agenda.due(now("2026-01-01T00:10", 300_000))
    assert following is not None
    assert following.slot == at("2026-01-01T00:10")
    agenda.note_done(following, "x")
    assert agenda.due(now("2026-01-01T00:14", RETRY_MS)) is None, "it stands for both"


def test_what_cannot_be_read_counts_as_a_first_start() -> None:
    table = {b"weekly": b"{", b"\xff": b"{}", b"monthly": b'{"until":"2026-01-01T00:00:00"}'}
    assert read_standings(table) == {}
    assert len(Agenda(DEFAULTS, NAMES, table).begin(now("2026-01-15"))) == 2


@pytest.mark.parametrize(
    "value",
    [
        b'{"zz":' + b"[" * 5_000,
        b'{"until":"9999-12-31T23:59:59Z"}',
        b'{"until":"0001-01-01T00:00:00Z"}',
        b'{"until":"0001-01-01T00:00:00+14:00"}',
        b'{"until":"2026-01-01T00:00:00+14:00"}',
        b'{"until":"2026-01-01T00:00:00Z","runs":[["2026-01-01T00:00:00Z","9999-12-31T23:59:59Z"]]}',
    ],
)
def test_what_would_end_the_sink_counts_as_a_first_start(value: bytes) -> None:
    """It is read again at each start: nesting too deep, and moments that no calendar bears."""
    assert read_standing(b"weekly", value) is None
    agenda = Agenda(DEFAULTS, NAMES, {b"weekly": value})
    assert len(agenda.begin(now("2026-01-15"))) == 2
    assert agenda.due(now("2026-01-15")) is None


# --- Clocks that are set --------------------------------------------------------------------------

HOURLY = Schedule("x", "0 * * * *")


class Running:
    """An agenda whose slots are made as soon as they are due, and its topic."""

    def __init__(self, schedule: Schedule = HOURLY) -> None:
        self.schedule = schedule
        self.table: dict[bytes, bytes] = {}
        self.made: list[datetime] = []
        self.restart()

    def restart(self) -> None:
        self.agenda = Agenda([self.schedule], NAMES, self.table)

    def run(self, moment: Moment) -> None:
        self.table |= table_of([*self.agenda.begin(moment), *self.agenda.correct(moment)])
        while (due := self.agenda.due(moment)) is not None:
            self.table |= table_of([self.agenda.message_of(due, "x")])
            self.agenda.note_done(due, "x")
            self.made.append(due.slot)

    def through(self, start: str, hours: float) -> None:
        """The clock goes from there, a look every ten minutes."""
        for minutes in range(0, int(hours * 60) + 1, 10):
            self.run(Moment(ms(start) + minutes * 60_000, 0))

    @property
    def hours(self) -> list[str]:
        return [f"{slot:%d %H:%M}" for slot in self.made]


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_set_back_repeats_no_slot_and_blocks_none(restart: bool) -> None:
    running = Running()
    running.through("2026-01-01T00:30", 3)
    if restart:
        running.restart()
    running.through("2026-01-01T02:30", 2)  # it was 03:30
    assert running.hours == ["01 01:00", "01 02:00", "01 03:00", "01 04:00"]


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_ran_ahead_for_a_moment_skips_nothing(restart: bool) -> None:
    """One slot is made a day early, and not again; all until then are made in their time."""
    running = Running()
    running.through("2026-01-01T00:30", 2)
    running.through("2026-01-02T02:30", 0)
    if restart:
        running.restart()
    running.run(now("2026-01-01T02:31"))
    assert running.agenda.next() == {"x": at("2026-01-01T03:00")}
    running.through("2026-01-01T02:40", 26)
    expected = [f"01 {hour:02}:00" for hour in (1, 2)] + ["02 02:00"]
    expected += [f"01 {hour:02}:00" for hour in range(3, 24)]
    expected += [f"02 {hour:02}:00" for hour in (0, 1, 3, 4)]
    assert running.hours == expected


def test_a_slot_while_the_clock_runs_ahead_is_not_skipped() -> None:
    running = Running()
    running.through("2026-01-01T00:30", 0.4)
    running.through("2026-01-02T00:54", 0)
    running.run(now("2026-01-01T01:00"))
    assert running.hours == ["02 00:00", "01 01:00"]


def test_a_first_start_by_a_clock_that_ran_ahead_is_forgiven() -> None:
    running = Running()
    running.through("2026-01-02T00:30", 0)
    running.through("2026-01-01T00:30", 1)
    assert running.hours == ["01 01:00"]


def test_what_an_earlier_release_has_settled_is_not_made_again() -> None:
    running = Running()
    running.table = {b"x": b'{"until":"2026-01-02T02:00:00Z","export":"an-id"}'}
    running.restart()
    assert read_standings(running.table)["x"].made == at("2026-01-02T02:00")
    running.through("2026-01-01T23:30", 4)
    assert running.hours == ["02 00:00", "02 01:00", "02 03:00"]


def test_where_the_clock_goes_back_the_last_run_is_the_one_that_was_made() -> None:
    running = Running()
    running.through("2026-01-01T00:30", 2)
    for moment in ("2026-01-04T02:30", "2026-01-01T02:31", "2025-12-29T02:31"):
        running.run(now(moment))
        assert read_standings(running.table)["x"].made == at("2026-01-04T02:00")
    assert running.hours == ["01 01:00", "01 02:00", "04 02:00"]


def test_missed_slots_are_caught_up_though_a_later_one_was_made_early() -> None:
    running = Running()
    running.through("2026-01-01T00:30", 0.5)
    running.through("2026-01-02T02:30", 0)
    running.run(now("2026-01-01T01:10"))
    running.restart()
    running.through("2026-01-02T02:40", 0)
    assert running.hours == ["01 01:00", "02 02:00", "02 01:00"]


@given(
    st.lists(st.tuples(st.integers(0, 200) | st.integers(-3000, 3000), st.booleans()), max_size=30)
)
def test_whatever_the_clock_does_no_slot_is_made_twice(steps: list[tuple[int, bool]]) -> None:
    """And none stays due: the next one is always in the future."""
    running = Running(Schedule("x", "0 */6 * * *"))
    minutes = 5000
    for step, crash in steps:
        minutes += step
        moment = Moment(ms("2026-01-01") + minutes * 60_000, 0)
        running.run(moment)
        assert running.agenda.due(moment) is None
        last = running.made[-1] if running.made else None
        assert read_standings(running.table)["x"].made == last
        assert running.agenda.next()["x"].timestamp() * 1000 > moment.wall
        if crash:
            running.restart()
    if len(running.table.get(b"x", b"")) and _jumps(steps) < 4:
        assert len(set(running.made)) == len(running.made)


def _jumps(steps: list[tuple[int, bool]]) -> int:
    """How often slots were passed over or gone back behind: so many runs are remembered."""
    return sum(not 0 <= step < 360 for step, _ in steps)


@given(st.lists(st.tuples(st.integers(0, 40 * 24 * 60), st.booleans()), max_size=20))
def test_no_slot_is_settled_twice_and_none_is_settled_out_of_order(
    steps: list[tuple[int, bool]],
) -> None:
    running = Running(Schedule("x", "0 */6 * * *"))
    wall = ms("2026-01-01")
    for minutes, crash in steps:
        wall += minutes * 60_000
        before = len(running.made)
        running.run(Moment(wall, 0))
        assert len(running.made) <= before + 1
        for slot in running.made[before:]:
            assert wall - int(slot.timestamp() * 1000) < 6 * 3600 * 1000
        if crash:
            running.restart()
    assert running.made == sorted(set(running.made))
