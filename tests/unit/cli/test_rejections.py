"""`buddy rejections`: summaries of what is there, whoever else has left something there."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from tests.contract.helpers import damage_embedded
from tests.unit.embedded_kit import opened
from worker.cli.main import run
from worker.core.topics import Names
from worker.stream import Partition, ProducerRecord

GARBAGE = (b"", b"{}", b"\xff", b'{"entity":"\xff"}', b'{"zz":' + b"[" * 5_000)


def filled(tmp_path: Path, partitions: int, sent: Iterable[tuple[int, bytes]]) -> str:
    """A broker whose topic of rejected users holds these, by partition; the option for it."""
    option = f"--broker=embedded:{tmp_path / 'broker'}"
    assert run([option, "topics", "create", "--partitions", str(partitions)]) == 0
    topic = Names().rejected("users")
    messages = [ProducerRecord(topic, b"k", value, partition=number) for number, value in sent]

    async def fill() -> None:
        async with opened(tmp_path / "broker") as broker:
            await broker.publish(messages)

    asyncio.run(fill())
    return option


def test_what_is_no_rejection_is_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = filled(tmp_path, 1, [(0, value) for value in GARBAGE])
    capsys.readouterr()
    assert run([option, "rejections", "summary"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"buddy: buddy.rejected.users/0/{offset} is no rejection: skipped"
        for offset in range(len(GARBAGE))
    ]


def rejection(at: str, *violations: tuple[str, str]) -> bytes:
    source = {"topic": "t", "partition": 0, "offset": 0, "timestamp": at}
    found = [{"code": c, "field": f, "message": "", "severity": "error"} for c, f in violations]
    return msgspec.json.encode(
        {"entity": "users", "key": None, "rejected_at": at, "source": source, "violations": found}
    )


EARLY, NEXT, LATE = "2025-11-22T10:30:00Z", "2025-11-22T10:30:00.500000Z", "2025-11-22T10:30:01Z"
"""As texts they sort in another order: a point comes before a Z."""
ROLE = ("invalid_enum", "role")
INTEREST, OTHER = ("wrong_type", "interests[0]"), ("wrong_type", "interests[7]")


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDDY_DATA", str(tmp_path / "data"))


def test_a_rejection_counts_once_for_all_places_of_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = filled(tmp_path, 1, [(0, rejection(EARLY, INTEREST, OTHER))])
    capsys.readouterr()
    assert run([option, "rejections", "summary", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["violations"]
    assert (found["field"], found["records"]) == ("interests", 1)


def test_the_summary_of_partitions_read_in_any_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What workers say when is not believed: their clocks may be wrong. The broker's time counts.
    began = datetime.now(UTC).isoformat()[:19]
    each = itertools.product(range(3), (NEXT, LATE, EARLY))
    option = filled(tmp_path, 3, [(partition, rejection(at, ROLE)) for partition, at in each])
    capsys.readouterr()
    assert run([option, "rejections", "summary", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["violations"]
    assert found["records"] == 9
    assert began <= found["first"] <= found["last"]


def test_watch_from_the_start_goes_by_time_over_all_partitions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [(n % 2, rejection(f"2025-11-22T10:{n:02}:00Z", ROLE)) for n in range(20)]
    option = filled(tmp_path, 3, [*sent[1::2], *sent[::2]])
    capsys.readouterr()
    watch = [option, "rejections", "watch", "--from-start", "--limit", "20"]
    assert run([*watch, "--json"]) == 0
    told = [json.loads(line)["rejected_at"] for line in capsys.readouterr().out.splitlines()]
    assert told == [f"2025-11-22T10:{n:02}:00Z" for n in range(20)]
    assert run(watch) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "2025-11-22 10:00:00  t/0/0  key -",
        "  invalid_enum  role: ",
    ]


def test_unknown_fields_of_rejected_records_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [
        {"id": 1, "emial": "private", "\x1b[2J": 1},
        {str(n): 1 for n in range(100)} | {"z" * 100: 1},
        None,
    ]
    values = [
        rejection(EARLY, ROLE)[:-1] + b',"record":' + json.dumps(record).encode() + b"}"
        for record in records
    ]

    option = filled(tmp_path, 1, [(0, value) for value in values])
    capsys.readouterr()
    assert run([option, "rejections", "summary", "--json"]) == 0
    (names,) = json.loads(capsys.readouterr().out)["unknown_names"].values()
    assert len(names) == 50
    assert list(names)[:3] == ["emial", "\\x1b[2J", "0"]
    assert run([option, "rejections", "summary"]) == 0
    assert re.search("emial +│ +1 │ email ", capsys.readouterr().out)
    assert run([option, "rejections", "watch", "--from-start", "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "  fields that no column is for: emial, \\x1b[2J\n" in printed
    assert "private" not in printed
    monkeypatch.setenv("COLUMNS", "80")
    assert run([option, "rejections", "watch", "--from-start", "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("    1") for line in lines)


def test_a_watch_tells_of_damage_that_hides_rejections(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [(number, rejection(EARLY, ROLE)) for number in (0, 1)]
    option = filled(tmp_path, 2, sent)
    topic = Names().rejected("users")

    async def damage() -> None:
        async with opened(tmp_path / "broker") as broker:
            await damage_embedded(broker, Partition(topic, 0))

    asyncio.run(damage())
    capsys.readouterr()
    watch = [option, "rejections", "watch", "--from-start", "--limit", "1", "--json"]
    assert run(watch) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    (line,) = said.err.splitlines()
    assert line.startswith(f"buddy: {topic}/0 is damaged from offset 0 up to 1")
    assert line.endswith("goes on behind it; nothing behind it is shown until then")


def test_incidents_say_what_damage_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = filled(tmp_path, 2, [(number, rejection(EARLY, ROLE)) for number in (0, 1)])
    topic = Names().rejected("users")

    async def damage() -> None:
        async with opened(tmp_path / "broker") as broker:
            await damage_embedded(broker, Partition(topic, 0))

    asyncio.run(damage())
    assert run([option, "rejections", "summary"]) == 0
    capsys.readouterr()
    assert run([option, "rejections", "incidents", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"buddy: {topic}/0 is damaged from offset 0")
    assert line.endswith("its later rejections are missing here, also as causes of orphans")


def test_since_takes_a_moment_in_utc_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = datetime.now(UTC)
    option = filled(tmp_path, 1, [(0, rejection(f"{now:%Y-%m-%dT%H:%M:%SZ}", ROLE))])
    listing = [option, "rejections", "list", "--all", "--json", "--since"]
    capsys.readouterr()
    assert run([*listing, f"{now - timedelta(minutes=10):%Y-%m-%dT%H:%MZ}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    for wrong, said in (
        (f"{now + timedelta(days=2):%Y-%m-%dT%H:%MZ}", "lies ahead of this machine's clock"),
        ("yesterday", "is no time: say 30m, 2h or 7d back from now, or a moment in UTC"),
    ):
        assert run([*listing, wrong]) == 2
        assert said in capsys.readouterr().err
    assert run([option, "rejections", "summary", "--since", f"{now.year - 2}-01-01T00:00Z"]) == 0
    assert re.search(r"The last [0-9]{5} h: ", capsys.readouterr().out)
