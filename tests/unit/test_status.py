"""What `buddy status` makes of the tasks' books; the end to end test is in tests/contract."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas import ENTITIES
from worker.core.checkpoint import Checkpoint, Counts
from worker.core.topics import Names
from worker.status import (
    STALLED_MS,
    BrokerAnswers,
    Entry,
    earlier,
    entry_of,
    may_be_still,
    report,
    stalled,
    time_of,
    trouble,
    undecided,
    unread,
)
from worker.stream import GroupMember, Message, OffsetRange, Partition

NAMES = Names("p")
NOW = 1_700_000_000_000
USERS = Partition("p.in.users", 0)
EVENTS = Partition("p.in.events", 1)
ALL_READ = dict.fromkeys(ENTITIES, 10)


def book(**fields: Any) -> Checkpoint:
    return Checkpoint(**{"next": ALL_READ, "judged": {}, "topics": {"claims": "c"}, **fields})


def seen(**changes: Any) -> BrokerAnswers:
    """Two tasks of one worker, all read, a minute ago; except for the changes."""
    places = [Partition(NAMES.inputs(e), number) for e in ENTITIES for number in (0, 1)]
    usual: dict[str, Any] = {
        "names": NAMES,
        "at": NOW,
        "entries": dict.fromkeys((0, 1), Entry(book(), NOW - 60_000)),
        "spans": dict.fromkeys(places, OffsetRange(0, 10)),
        "ends": dict.fromkeys(places, 10),
        "told": {},
        "identities": {NAMES.inputs(entity): f"id-{entity}" for entity in ENTITIES},
        "workers": [GroupMember("w", frozenset({0, 1}))],
        "sinks": [],
        "exact": True,
    }
    return BrokerAnswers(**(usual | changes))


def behind(**changes: Any) -> BrokerAnswers:
    """As `seen`, but 3 users of task 0 are still to be read."""
    base = seen()
    return seen(spans={**base.spans, USERS: OffsetRange(0, 13)}, **changes)


def message(value: bytes | None, key: bytes = b"1", number: int = 1, at: int = NOW) -> Message:
    return Message(NAMES.progress, number, 0, at, key, value)


def progress(**positions: int) -> bytes:
    return msgspec.json.encode({"next": positions, "judged": {}})


# --- The newest readable progress -----------------------------------------------------------------


def test_the_newest_progress_counts() -> None:
    found = entry_of([message(progress(users=1)), message(progress(users=2), at=NOW + 1)])
    assert (found.book, found.committed) == (Checkpoint({"users": 2}, {}), NOW + 1)


@pytest.mark.parametrize(
    "garbage",
    [
        message(b"\xff"),
        message(b'{"next":{},"judged":{},"worker":"\xff"}'),
        message(b'{"zz":' + b"[" * 5_000),
        message(b"{}"),
        message(b'{"next":{},"judged":{},"counts":{"users":{"read":-5}}}'),
        message(b'{"next":{},"judged":{},"incidents":{"x":-7}}'),
        message(b"[]"),
        message(b'{"next": 3}'),
        message(b'{"counts": {"users": {"read": "many"}}}'),
        message(b"{}", key=b"0"),
        message(b"{}", key=b"somebody else"),
        message(None),
    ],
)
def test_garbage_is_passed_over_and_counted(garbage: Message) -> None:
    found = entry_of([garbage, message(progress(users=1)), garbage, garbage])
    assert (found.book, found.committed) == (Checkpoint({"users": 1}, {}), NOW)
    assert found.unreadable == 2
    assert entry_of([garbage]) == Entry(unreadable=1)


def test_progress_of_another_release_is_read_as_far_as_it_goes() -> None:
    value = b'{"next":{"users":1,"claims":5},"judged":{"users":-1},"held":{},"news":{"x":[1]}}'
    assert entry_of([message(value)]).book == Checkpoint({"users": 1, "claims": 5}, {"users": -1})


# --- What is still to be read ---------------------------------------------------------------------


def test_what_is_read_is_no_lag() -> None:
    assert unread(seen()) == {}
    assert unread(behind()) == {USERS: 10}


def test_the_offset_that_the_group_was_told_counts_where_it_is_further() -> None:
    """As behind a transaction marker, of which no task makes a commit of its own."""
    assert unread(behind(told={USERS: 13})) == {}
    assert unread(behind(told={USERS: 12})) == {USERS: 12}
    assert unread(behind(told={USERS: 400})) == {USERS: 10}, "of an earlier topic"


@pytest.mark.parametrize(
    "changed",
    [
        {"topics": {"users": "id-of-the-one-before"}},
        {"next": ALL_READ | {"users": 400}},
    ],
)
def test_of_a_topic_that_was_made_anew_nothing_is_read(changed: dict[str, Any]) -> None:
    entries = {0: Entry(book(**changed), NOW), 1: Entry(book(), NOW)}
    found = seen(entries=entries, told={USERS: 10})
    assert unread(found) == {USERS: 0}


def test_a_topic_of_which_no_identity_is_known_is_taken_as_the_same() -> None:
    entries = {0: Entry(book(topics={"users": ""}), NOW), 1: Entry(book(), NOW)}
    assert unread(seen(entries=entries)) == {}


def test_a_task_that_never_committed_has_read_nothing_and_what_expired_is_no_lag() -> None:
    base = seen()
    found = seen(
        entries={0: Entry(), 1: base.entries[1]}, spans={**base.spans, USERS: OffsetRange(4, 10)}
    )
    assert unread(found)[USERS] == 4
    assert {place.number for place in unread(found)} == {0}


# --- Whether somebody works -----------------------------------------------------------------------


def told(
    found: BrokerAnswers, waiting: dict[Partition, int | None], services: Any = ("worker",)
) -> Any:
    return trouble(found, 3, stalled(found, waiting), services)


def test_all_is_well() -> None:
    assert told(seen(), {}) is None
    assert told(behind(), {USERS: NOW - STALLED_MS + 1}) is None, "it has only just come"
    busy = behind(entries=dict.fromkeys((0, 1), Entry(book(), NOW - STALLED_MS + 1)))
    assert told(busy, {USERS: NOW - 3_600_000}) is None, "a backlog is being worked on"


def test_no_worker() -> None:
    line = told(seen(workers=[]), {})
    assert line.startswith("no worker is running: start 'buddy worker'")
    assert "3 records are to be read" in line


@pytest.mark.parametrize("committed", [NOW - STALLED_MS, None])
@pytest.mark.parametrize("since", [NOW - 95_000, None])
def test_a_lag_that_nobody_reduces(committed: int | None, since: int | None) -> None:
    entries = {0: Entry(book(), committed), 1: Entry(book(), NOW)}
    line = told(behind(entries=entries), {USERS: since})
    assert line.startswith("nobody reduces the lag of task 0: a record has waited for ")
    assert ("95 s" if since else "30 s") in line


def test_many_stalled_tasks_are_one_line() -> None:
    many = {Partition(USERS.topic, number): 40_000 for number in range(50)}
    line = trouble(seen(entries=dict.fromkeys(range(50), Entry())), 3, many, ["worker"])
    assert line is not None
    assert "task 0, 1, 2, 3, 4, 5, 6, 7 and 42 more" in line


def test_each_service_is_looked_at_where_it_is_asked_for() -> None:
    without = seen(workers=[], sinks=[GroupMember("s", frozenset({0}))])
    assert told(without, {}, ["sink"]) is None
    assert told(seen(), {}, ["sink"]).startswith("no sink is running: start 'buddy sink'")
    assert told(seen(), {}, ["worker", "sink"]).startswith("no sink")
    assert "DESCRIBE on group p-sink" in told(seen(sinks=None), {}, ["sink"])


# --- Whether a position moves ---------------------------------------------------------------------

LATE = Partition("p.in.events", 0)


def history(*positions: tuple[int, dict[str, int]]) -> Entry:
    """What progress of task 0 says that was written so many seconds ago, oldest first."""
    return entry_of(
        message(progress(**{**ALL_READ, **where}), b"0", 0, NOW - seconds * 1_000)
        for seconds, where in positions
    )


def of_task_0(entry: Entry, **changes: Any) -> BrokerAnswers:
    """Users and events of task 0 are still to be read."""
    base = seen()
    spans = {**base.spans, USERS: OffsetRange(0, 13), LATE: OffsetRange(0, 13)}
    return seen(entries={0: entry, 1: Entry(book(), NOW)}, spans=spans, **changes)


def test_a_task_that_commits_does_not_reduce_the_lag_of_an_input_that_it_does_not_read() -> None:
    """It commits each ten seconds: other inputs, verdicts of what is parked."""
    entry = history(*((seconds, {"users": 100 - seconds}) for seconds in range(90, -1, -10)))
    found = of_task_0(entry)
    assert stalled(found, {USERS: NOW - 95_000}) == {}
    assert stalled(found, {LATE: NOW - 29_000}) == {}, "it has only just come"
    line = told(found, {LATE: NOW - 95_000})
    assert line.startswith("nobody reduces the lag of task 0: a record has waited for 95 s")
    assert "p.in.events/0" in line
    assert "its position has not moved, though the task commits" in line


def test_an_input_that_has_moved_within_the_time_is_read() -> None:
    entry = history(
        (90, {"events": 3}), (40, {"events": 3}), (25, {"events": 4}), (0, {"events": 4})
    )
    assert entry.still["events"] == NOW - 25_000
    assert stalled(of_task_0(entry), {LATE: NOW - 95_000}) == {}


def test_an_input_that_moved_long_ago_may_stand_still_now() -> None:
    """Progress is written seldom, so what was looked at reaches back to when it moved."""
    entry = history((90, {"events": 3}), (40, {"events": 4}), (0, {"events": 4}))
    found = of_task_0(entry)
    assert may_be_still(found, LATE)
    assert list(stalled(found, {LATE: NOW - 95_000})) == [LATE]


def test_of_a_topic_that_was_made_anew_the_position_is_another() -> None:
    entry = earlier(
        Entry(book(topics={"events": "new"}), NOW, still={"events": NOW}, first=NOW),
        message(progress(**ALL_READ), b"0", 0, NOW - 60_000),
    )
    assert entry.still["events"] == NOW


def test_earlier_progress_is_asked_for_only_where_it_decides() -> None:
    entry = history((1, {"users": 9}), (0, {}))
    found = of_task_0(entry)
    assert not may_be_still(found, USERS), "it moves"
    assert may_be_still(found, LATE)
    assert undecided(found, {LATE: NOW - 29_000, USERS: NOW - 95_000}) == set()
    assert undecided(found, {LATE: NOW - 95_000}) == {0}
    assert told(found, {LATE: NOW - 95_000}) is None, "nobody knows"
    for seconds, waits in ((20, True), (31, False)):
        entry = earlier(entry, message(progress(**ALL_READ), b"0", 0, NOW - seconds * 1_000))
        found = of_task_0(entry)
        assert bool(undecided(found, {LATE: NOW - 95_000})) is waits
    assert list(stalled(found, {LATE: NOW - 95_000})) == [LATE]
    assert undecided(of_task_0(Entry()), {LATE: None}) == set()


def test_what_waits_for_its_turn_behind_a_backlog_is_not_stalled() -> None:
    entry = history((90, {"users": 0}), (31, {"users": 4}), (0, {"users": 5}))
    found = of_task_0(entry)
    assert stalled(found, {USERS: NOW - 95_000, LATE: NOW - 95_000}) == {}
    assert list(stalled(found, {USERS: NOW - 9_000, LATE: NOW - 95_000})) == [LATE], "no backlog"
    other = of_task_0(
        msgspec.structs.replace(entry, book=book(next=ALL_READ)),
        workers=[GroupMember("a", frozenset({0})), GroupMember("b", frozenset({1}))],
    )
    elsewhere = {Partition(USERS.topic, 1): NOW - 95_000, LATE: NOW - 95_000}
    assert list(stalled(other, elsewhere)) == [LATE], "another worker's backlog is no reason"
    stuck = history((90, {}), (0, {}))
    both = stalled(of_task_0(stuck), {USERS: NOW - 95_000, LATE: NOW - 95_000})
    assert both.keys() == {USERS, LATE}


def test_where_records_are_parked_an_input_may_be_paused_for_a_grace_and_then_it_is_said() -> None:
    entry = history((95, {}), (0, {}))
    counts = {"checkins": Counts(parked=7), "users": Counts(parked=2)}
    entry = msgspec.structs.replace(entry, book=book(counts=counts))
    assert told(of_task_0(entry, grace_ms=70_000), {LATE: NOW - 95_000}) is None
    line = told(of_task_0(entry, grace_ms=60_000), {LATE: NOW - 95_000})
    assert "7 records of its kind are parked: the input may be paused" in line


# --- The report -----------------------------------------------------------------------------------


def test_counts_are_summed_over_the_tasks() -> None:
    counts = Counts(read=5, accepted=2, deleted=1, rejected=1, parked=1)
    entries = {
        0: Entry(book(counts={"users": counts, "events": counts}, worker="a", since=NOW), NOW),
        1: Entry(
            book(
                counts={"users": counts},
                incidents={"input_expired": 3, "clock_stepped": 0},
                oldest=NOW - 1_000,
            ),
            None,
            unreadable=2,
        ),
    }
    base = seen()
    found = report(
        seen(entries=entries, ends={**base.ends, EVENTS: 14}, exact=False), {EVENTS: 4, USERS: 2}
    )
    users = msgspec.structs.asdict(found.entities["users"])
    assert users == {name: 2 * n for name, n in msgspec.structs.asdict(counts).items()} | {
        "lag": 2,
        "blocked": 0,
    }
    assert (found.entities["events"].lag, found.entities["events"].blocked) == (4, 4)
    assert list(found.entities) == list(ENTITIES)
    first, second = found.tasks
    assert (first.owner, first.worker, first.since) == ("w", "a", "2023-11-14T22:13:20Z")
    assert (first.committed, first.parked, first.lag) == ("2023-11-14T22:13:20Z", 2, 2)
    assert (second.owner, second.worker, second.since, second.committed) == ("w", None, None, None)
    assert found.oldest_parked == "2023-11-14T22:13:19Z"
    assert found.incidents == {"input_expired": 3}
    assert found.unreadable_progress == 2
    assert not found.lag_is_exact
    assert [worker.tasks for worker in found.workers] == [[0, 1]]


def test_what_was_skipped_is_told_by_topic_and_of_this_prefix_alone() -> None:
    names = ("p.rejected.users", "p.exports", "other.exports")
    skipped = {Partition(name, number): 2 for name in names for number in (0, 1)}
    found = report(seen(skipped=skipped), {})
    assert found.skipped == {"p.rejected.users": 4, "p.exports": 4}


def test_without_a_lag_it_is_exact_on_every_broker() -> None:
    assert report(seen(exact=False), {}).lag_is_exact
    assert report(seen(exact=True), {USERS: 4}).lag_is_exact


def test_of_two_sinks_one_is_active() -> None:
    pair = [GroupMember("one", frozenset()), GroupMember("two", frozenset({0}))]
    found = report(seen(sinks=pair), {})
    assert found.sinks is not None
    assert [(sink.name, sink.active) for sink in found.sinks] == [("one", False), ("two", True)]
    assert report(seen(sinks=None), {}).sinks is None


def test_a_stamp_that_no_clock_ever_said_is_unknown() -> None:
    assert time_of(2**62) is None
    assert time_of(None) is None


def test_what_no_book_was_kept_of_is_unknown() -> None:
    """After an upgrade, until a worker has committed; a task that never began has done nothing."""
    old = Entry(Checkpoint(ALL_READ, {}), NOW)
    found = report(seen(entries={0: old, 1: Entry(book(), NOW)}), {})
    users = found.entities["users"]
    assert (users.read, users.parked, users.lag) == (None, None, 0)
    assert [task.parked for task in found.tasks] == [None, 0]
    assert report(seen(entries={0: Entry(), 1: Entry()}), {}).entities["users"].read == 0


def test_the_order_in_which_a_broker_lists_members_is_not_told() -> None:
    members = [GroupMember(name, frozenset()) for name in ("b", "a")]
    found = report(seen(workers=members, sinks=members), {})
    assert [worker.name for worker in found.workers] == ["a", "b"]
    assert found.sinks is not None
    assert [sink.name for sink in found.sinks] == ["a", "b"]
