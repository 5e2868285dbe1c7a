"""What ops look at: rejections, status, schema, configuration, version, topics, deletions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.acceptance.accounts import json_rows
from tests.acceptance.kit import Another, Buddy
from tests.acceptance.material import user, write_rows
from worker import __version__

pytestmark = pytest.mark.acceptance

SECRET = "tr0ub4dor&3"
LOGIN = f"me:{SECRET}" + "@"  # in two parts: no file of ours holds a login in an address


def test_rejections_show_code_and_field_and_never_the_record(another: Another) -> None:
    buddy = another()
    private = {"email": "Ola.Hemmelig", "first_name": "Ola Hemmelig", "role": "hemmelig-role"}
    records = [user(**private), user(**private), user()]
    write_rows(buddy.directory, {"users": records})
    service = buddy.start("run").ready()
    watching = buddy.start("rejections", "watch", "--from-start", "--limit", "2")
    as_json = buddy.start("rejections", "watch", "--from-start", "--limit", "2", "--json")
    only = buddy.start("rejections", "watch", "--from-start", "--code", "invalid_enum", "--limit=1")
    buddy.run("send", "users.ndjson", "--wait", "--producer", "import")
    shown = [watching.end(), as_json.end(), only.end()]
    service.stop().succeeded()
    summary = buddy.run("rejections", "summary").succeeded()
    shown += [summary, buddy.run("rejections", "summary", "--json", "--entity", "users")]

    for result in shown:
        result.succeeded()
        assert "invalid_email" in result.out, f"{result}"
        assert "role" in result.out
        assert "emmelig" not in result.out
    assert "2 rejections" in summary.out
    counts = {(v["code"], v["field"]): v["records"] for v in shown[-1].json["violations"]}
    assert counts == {("invalid_email", "email"): 2, ("invalid_enum", "role"): 2}
    assert shown[-1].json["rejections"] == 2
    keys = {json.loads(line)["key"] for line in shown[1].out.splitlines()}
    assert keys == {record["id"] for record in records[:2]}
    for name, count in (("import", 2), ("crm", 0)):
        found = buddy.run("rejections", "summary", "--json", "--producer", name).succeeded()
        assert found.json["rejections"] == count
    other = buddy.run("rejections", "summary", "--json", "--code", "duplicate_email").succeeded()
    assert (other.json["rejections"], other.json["violations"]) == (0, [])


def test_topics_are_created_once(another: Another) -> None:
    buddy = another()  # where they have been created
    total = len(list(buddy.names.every()))
    again = buddy.run("topics", "create", "--json").succeeded()
    there = again.json["partitions"]
    assert again.json == {"created": [], "partitions": there}
    same = buddy.run("topics", "create", "--partitions", str(there)).succeeded()
    assert same.out == f"0 topics created, {total} were there; inputs have {there} partitions.\n"
    more = buddy.run("topics", "create", "--partitions", "6").complained(3)
    assert more.startswith("nothing was changed: ")
    assert f"has {there} partitions, not 6" in more


def test_a_deleted_row_leaves_the_export(another: Another) -> None:
    buddy = another()
    rows = [user(), user(), user()]
    write_rows(buddy.directory, {"users": rows})
    service = buddy.start("run").ready()
    buddy.run("send", "users.ndjson", "--wait").succeeded()
    gone = str(rows[1]["id"])
    deleted = buddy.run("delete", "users", gone.upper()).succeeded()
    assert deleted.out == "1 deletion sent.\n"
    # The same partition: it is judged after the deletion.
    write_rows(buddy.directory, {"users": [{**rows[1], "role": "nosuch"}]})
    buddy.run("send", "users.ndjson", "--wait")
    exported = json_rows(buddy.export("--format", "json", "--entity", "users"))
    service.stop().succeeded()
    assert {row["id"] for row in exported["users"]} == {rows[0]["id"], rows[2]["id"]}


def test_an_export_is_copied_where_it_is_asked_for(local: Buddy) -> None:
    write_rows(local.directory, {"users": [user()]})
    service = local.start("run").ready()
    local.run("send", "users.ndjson", "--wait").succeeded()
    printed = local.run("export", "--out", "copy", "--format", "csv", "--format", "xlsx")
    assert "users.csv" in printed.succeeded().out
    assert {path.suffix for path in (local.directory / "copy").rglob("*.*") if path.is_file()} == {
        ".csv",
        ".json",  # metadata and manifest
        ".xlsx",
    }
    assert "copy exists" in local.run("export", "--out", "copy").complained(2)
    twice = [local.export("--id", "the-same", "--format", "json") for _ in range(2)]
    assert twice[0] == twice[1]
    service.stop().succeeded()


def test_schemas(local: Buddy) -> None:
    whole = local.run("schema").succeeded().json
    users = local.run("schema", "users").succeeded().json
    assert whole["$defs"]["User"]["properties"] == users["properties"]
    described = local.run("--prefix", "mine", "schema", "--format", "asyncapi").succeeded().json
    assert described["channels"]["in.users"]["address"] == "mine.in.users"
    assert "did you mean users?" in local.run("schema", "user").complained(2)


def test_the_configuration_never_shows_a_secret(local: Buddy, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(SECRET)
    given = {
        "BUDDY_KAFKA_PASSWORD": SECRET,
        "BUDDY_KAFKA_KEY_PASSWORD": SECRET,
        "BUDDY_KAFKA_USERNAME": "buddy",
        "BUDDY_KAFKA_PASSWORD_FILE": "",
    }
    file = {"BUDDY_KAFKA_PASSWORD_FILE": str(tmp_path / "password")}
    kafka = ("--broker", "kafka://127.0.0.1:1", "--log-level", "debug")
    login = {
        "BUDDY_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "BUDDY_KAFKA_SASL_MECHANISM": "PLAIN",
    }
    results = [
        local.run("config", env=given).succeeded(),
        local.run("config", "--json", env=given).succeeded(),
        local.run("config", "--json", env=file).succeeded(),
        local.run(*kafka, "status", env=given | login),
        local.run(*kafka, "run", env=given | login),
        local.run(*kafka, "run", env=file | login),
    ]
    for result in results:
        assert SECRET not in result.out + result.err, f"{result}"
    assert "***" in results[0].out
    assert results[1].json["secrets"]["BUDDY_KAFKA_PASSWORD"] == "***"
    assert results[1].json["kafka"]["username"] == "buddy"


@pytest.mark.parametrize(
    ("option", "value", "command"),
    [
        ("--broker", "kafka://" + LOGIN + "127.0.0.1:1", "run"),
        ("--exports", "s3://" + LOGIN + "bucket", "config --json"),
    ],
)
def test_a_login_in_a_url_is_refused_and_never_shown(
    local: Buddy, option: str, value: str, command: str
) -> None:
    refused = local.run(option, value, *command.split())
    assert "never into a URL" in refused.complained(3)
    assert SECRET not in refused.out + refused.err


def test_a_variable_that_is_no_setting_is_named_and_stops_nothing(local: Buddy) -> None:
    given = {"BUDDY_GRACE_SECOND": SECRET, "BUDDY_SERVICE_HOST": "127.0.0.1"}
    done = local.run("config", env=given).succeeded()
    assert done.err == (
        "buddy: no such setting, ignored: BUDDY_GRACE_SECOND (did you mean BUDDY_GRACE_SECONDS?)\n"
    )


def test_options_over_environment_over_file(local: Buddy) -> None:
    (local.directory / "my.toml").write_text('prefix = "file"\npartitions = 7\ngrace_seconds = 3\n')
    env = {"BUDDY_PREFIX": "environment", "BUDDY_PARTITIONS": "8", "BUDDY_CONFIG": "my.toml"}
    found = local.run("--prefix", "option", "config", "--json", env=env).succeeded().json
    assert (found["prefix"], found["partitions"], found["grace_seconds"]) == ("option", 8, 3.0)


def test_version_and_help(local: Buddy) -> None:
    assert local.run("--version").succeeded().out == f"buddy, version {__version__}\n"
    text = local.run("--help").succeeded().out
    assert "\\b" not in text
    for command in ("buddy run", "buddy send users.ndjson --wait", "buddy export --wait"):
        assert any(line.endswith(f"  {command}") for line in text.splitlines()), text
    nothing = local.run()
    assert nothing.code == 2
    assert "Usage: buddy" in nothing.out
