"""`buddy log`: what it prints, what it asks, and its exit codes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.helpers import damage_embedded, numbered
from tests.unit.embedded_kit import opened
from worker.brokers.embedded.store import FILE_NAME
from worker.cli.main import run
from worker.stream import Partition, Topic

STATE, USAGE, NOBODY = 6, 2, 8
ONE_THAT_IS = "name one that 'buddy log verify' reports.\n"
Output = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> str:
    """The option that names a log of three batches of two messages, the second one damaged."""
    directory = tmp_path / "broker"

    async def fill() -> None:
        async with opened(directory) as broker:
            await broker.create([Topic("a.b", 1)])
            for _ in range(3):
                await broker.publish(numbered("a.b", [1, 2]))

    asyncio.run(fill())
    with closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.execute("UPDATE batches SET content = x'90' WHERE base = 2")
        connection.commit()
    return f"--broker=embedded:{directory}"


def test_verify_names_the_damage_and_is_content_once_it_is_skipped(
    log: str, capsys: Output
) -> None:
    assert run([log, "log", "verify"]) == STATE
    said = capsys.readouterr()
    assert said.out.startswith("a.b/0 is damaged from offset 2 up to 4 (the checksum does not fit)")
    assert said.err == "buddy: The log is damaged in 1 place.\n"
    assert run([log, "log", "skip", "a.b/0", "--yes"]) == 0
    assert capsys.readouterr().out == "Skipped 2 offsets of a.b/0.\n"
    assert run([log, "log", "verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batches"] == 2
    assert found["damaged"] == [
        {
            "topic": "a.b",
            "partition": 0,
            "from": 2,
            "to": 4,
            "reason": "the checksum does not fit",
            "skipped": True,
        }
    ]


def test_skip_asks_first(log: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    assert run([log, "log", "skip", "a.b/0@2"]) == 130
    assert run([log, "log", "verify"]) == STATE


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("log skip a.b/0", USAGE, "nobody can be asked"),
        ("log skip a.b/0@0", USAGE, "not damaged at offset 0"),
        ("log skip a.b", USAGE, "TOPIC/PARTITION@OFFSET"),
        ("log skip a.b/1 --yes", 3, f"The log has no partition a.b/1: {ONE_THAT_IS}"),
        ("log skip a.b/1@0 --yes", 3, f"The log has no partition a.b/1: {ONE_THAT_IS}"),
        ("log skip b/0 --yes", 3, f"The log has no topic b: {ONE_THAT_IS}"),
        ("--broker kafka://127.0.0.1:1 log verify", USAGE, "for the log of an embedded broker"),
        ("--broker kafka://127.0.0.1:1 log skip x/0", USAGE, "for the log of an embedded broker"),
        ("--broker embedded:nosuch log verify", STATE, "There is no log in nosuch"),
        ("--broker embedded:nosuch log accept-clock --yes", STATE, "There is no log in nosuch"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    log: str, arguments: str, code: int, says: str, capsys: Output
) -> None:
    assert run([log, *arguments.split()]) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_clock_that_is_right_changes_nothing(log: str, capsys: Output) -> None:
    assert run([log, "log", "accept-clock", "--yes"]) == 0
    assert capsys.readouterr().out == "The log's time was set by +0 s.\n"


def test_what_was_skipped_stays_in_the_status(tmp_path: Path, capsys: Output) -> None:
    directory = tmp_path / "broker"
    broker = f"--broker=embedded:{directory}"
    assert run([broker, "topics", "create", "--partitions", "1"]) == 0
    topic = "buddy.rejected.users"

    async def lose() -> None:
        async with opened(directory) as log:
            await log.publish(numbered(topic, [1, 2]))
            await damage_embedded(log, Partition(topic, 0))
            await log.inspection.skip(await log.inspection.find(Partition(topic, 0), 0))

    asyncio.run(lose())
    capsys.readouterr()
    assert run([broker, "status"]) == NOBODY
    line = f"Damaged offsets that were skipped, and are lost: {topic} 2\n"
    assert line in capsys.readouterr().out
    assert run([broker, "status", "--json"]) == NOBODY
    assert json.loads(capsys.readouterr().out)["skipped"] == {topic: 2}
