"""`buddy export` as people use it: ranges, feeds, what is not judged, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.kit import Buddy
from tests.unit.rows_kit import user, uuid

pytestmark = pytest.mark.acceptance

INCOMPLETE = 7
USAGE = 2


@pytest.fixture
def there(local: Buddy) -> Buddy:
    rows = [user(n, joined_at=f"2024-0{n}-01T00:00:00Z")[1] for n in (1, 2, 3)]
    (local.directory / "users.ndjson").write_bytes(b"\n".join(rows))
    return local


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--from 2024-02-01 --to 2024-01-31", "ends on 2024-01-31, before it begins on 2024-02-01"),
        ("--from yesterday", "'yesterday' is no date: write a day like 2024-01-31 (YYYY-MM-DD)"),
        ("--to 2023-02-29", "'2023-02-29' is no date"),
        ("--entity pets", "is not an entity: use one of users, matches, events"),
        ("--incremental a/b", "the name of a bookmark must be 1 to 100 of A-Z a-z 0-9 . _ -"),
    ],
)
def test_wrong_input_is_one_line_that_says_what_is_allowed(
    local: Buddy, arguments: str, says: str
) -> None:
    assert says in local.run("export", *arguments.split()).complained(USAGE)


def test_a_range_and_a_feed(there: Buddy) -> None:
    service = there.start("run").ready()
    there.run("send", "users.ndjson", "--wait").succeeded()
    there.run("send", "users.ndjson").succeeded()  # an export waits for verdicts itself
    february = there.export("--from", "2024-02-01", "--to", "2024-02-29", "--format", "json")
    (document,) = february.glob("*_export_*.json")
    content = json.loads(document.read_text())
    assert [row["id"] for row in content["users"]] == [uuid(2)]
    assert content["export_metadata"]["date_range"] == {"start": "2024-02-01", "end": "2024-02-29"}

    there.export("--incremental", "weekly", "--format", "csv")
    there.run("delete", "users", uuid(3)).succeeded()
    printed = there.run("export", "--incremental", "weekly", "--wait").succeeded().out
    assert "users: 1 row deleted (deleted)" in printed
    assert "new or changed since export" in printed
    printed = there.run("export", "--incremental", "other", "--wait").succeeded().out
    assert "All rows, not only those that changed: no export of that name" in printed
    service.stop().succeeded()


def test_what_nobody_judges_is_an_exit_code_of_its_own(there: Buddy) -> None:
    there.create_topics()
    there.settings["export_patience_seconds"] = 0.5
    sink = there.start("sink").ready()
    there.run("send", "users.ndjson").succeeded()
    line = there.run("export", "--wait", "--id", "mine").complained(INCOMPLETE)
    assert "the export is not complete: 3 records were not judged in time, in users/" in line
    again = there.run("export", "--wait", "--id", "mine", "--json")
    assert again.code == INCOMPLETE
    assert sum(json.loads(again.out)["pending"]["users"].values()) == 3
    assert len(list(Path(there.directory, "exports").glob("2*"))) == 1
    sink.stop().succeeded()
