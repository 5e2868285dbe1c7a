"""Exports in a bucket as people use them: a real server, real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.kit import Buddy
from tests.s3_server import KEY, SECRET, S3Server
from tests.unit.rows_kit import user
from worker.exports.verify import verify

pytestmark = pytest.mark.acceptance

STATE = 6
GUESSED = "a-secret-that-was-guessed"


@pytest.fixture
def there(s3: S3Server, tmp_path: Path) -> Iterator[Buddy]:
    """Its exports go to a bucket; there are three users to be exported."""
    (tmp_path / "secret").write_text(SECRET)
    made = Buddy(
        tmp_path / "buddy",
        exports=f"s3://{s3.new_bucket()}/programme",
        s3_endpoint=s3.endpoint,
        s3_region="us-east-1",
        s3_access_key_id=KEY,
        s3_secret_access_key_file=tmp_path / "secret",
    )
    rows = [user(n)[1] for n in (1, 2, 3)]
    (made.directory / "users.ndjson").write_bytes(b"\n".join(rows))
    yield made
    made.stop_all()


def test_an_export_appears_in_the_bucket_and_can_be_copied_out(there: Buddy) -> None:
    service = there.start("run").ready()
    there.run("send", "users.ndjson", "--wait").succeeded()
    printed = there.run("export", "--id", "first", "--wait").succeeded().out
    assert f"In {there.settings['exports']}/2" in printed
    answer = there.run("export", "--id", "first", "--out", "copy", "--json").succeeded().json
    assert answer["location"] == f"{there.settings['exports']}/{answer['directory']}"
    found = verify(there.directory / "copy")
    assert found.problems == ()
    assert found.manifest.export_id == answer["id"]
    assert found.manifest.record_counts["users"] == 3
    for path in (there.directory / "copy").rglob("*.csv"):
        assert not path.stat().st_mode & 0o007
    assert not (there.directory / "exports").exists()

    # Whoever has another place in his settings copies from the bucket all the same.
    there.run("--exports", "other", "export", "--id", "first", "--out", "again").succeeded()
    assert verify(there.directory / "again").problems == ()
    assert not (there.directory / "other").exists()
    assert there.run("exports", "latest").succeeded().out == f"{answer['location']}\n"

    there.run("export", "--incremental", "weekly", "--wait").succeeded()
    service.stop().succeeded()
    again = there.start("run").ready()
    there.run("delete", "users", str(user(3)[0], "ascii")).succeeded()
    printed = there.run("export", "--incremental", "weekly", "--wait").succeeded().out
    assert "users: 1 row deleted (deleted)" in printed
    found = there.run("exports", "list", "--bookmark", "weekly", "--json").succeeded().json
    increment, full = found["exports"]
    assert (full["full"], increment["full"], increment["base"]) == (True, False, full["id"])
    latest = there.run("exports", "latest", "--bookmark", "weekly").succeeded().out
    assert latest == f"{increment['location']}\n"
    again.stop().succeeded()


def test_a_pull_fetches_from_the_bucket_itself(there: Buddy) -> None:
    there.settings |= {"http_redirect_downloads": True, "http": True, "http_port": 0}
    made = there.run("token", "crm", "--role", "fetch").succeeded().out
    (there.directory / "tokens.toml").write_text(made)
    token = made.splitlines()[0].rpartition(" ")[2]
    there.settings["http_tokens_file"] = "tokens.toml"
    service = there.start("--log-level", "debug", "run").ready()
    service.wait_for("http_started")
    address = f"http://127.0.0.1:{service.logged('http_started')[0]['port']}"
    there.run("send", "users.ndjson", "--wait").succeeded()
    made = there.run("export", "--wait", "--json").succeeded().json["directory"]
    pulled = there.run("pull", address, "pulled", env={"BUDDY_HTTP_TOKEN": token}).succeeded()
    assert verify(there.directory / "pulled" / made).problems == ()
    files = [entry for entry in service.logged("http_request") if "{path" in entry["path"]]
    assert files
    assert {entry["status"] for entry in files} == {307}
    service.stop().succeeded()
    for text in (*service.lines, pulled.out, pulled.err):
        assert "X-Amz-" not in text
        assert token not in text


def test_a_copy_that_cannot_be_made_says_where_the_export_is(there: Buddy) -> None:
    service = there.start("run").ready()
    there.settings["s3_access_key_id"] = "nobody"
    line = there.run("export", "--out", "copy").complained(STATE)
    assert "access was refused (InvalidAccessKeyId)" in line
    assert f"the export itself is finished, in {there.settings['exports']}/2" in line
    assert line.endswith("to copy it, which makes no other export")
    assert "repeat with --id " in line
    assert [path.name for path in there.directory.glob("*copy*")] == []
    service.stop().succeeded()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("exports", "s3://no-such-bucket", "there is no bucket no-such-bucket: create it"),
        ("s3_access_key_id", "nobody", "access was refused (InvalidAccessKeyId): check the"),
        ("s3_secret_access_key", GUESSED, "access was refused (SignatureDoesNotMatch): check the"),
    ],
)
def test_a_sink_that_cannot_use_its_bucket_does_not_start(
    there: Buddy, setting: str, value: str, says: str
) -> None:
    there.create_topics()
    there.settings[setting] = value
    if setting == "s3_secret_access_key":
        del there.settings["s3_secret_access_key_file"]
    result = there.run("--log-level", "debug", "sink")
    *logged, line = result.err.splitlines()
    assert result.code == STATE
    assert line.startswith("buddy: cannot use the exports in s3://")
    assert says in line
    assert all(entry.startswith("{") for entry in logged)
    shown = there.run("config").succeeded().out + result.out + result.err
    assert GUESSED not in shown
    assert SECRET not in shown
    assert ("secrets.BUDDY_S3_SECRET_ACCESS_KEY" in shown) == (setting == "s3_secret_access_key")
