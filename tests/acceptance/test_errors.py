"""What a person does wrong is one clear line on standard error and a documented exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.kit import Buddy

pytestmark = pytest.mark.acceptance

USAGE, SETTINGS, UNREACHABLE, STATE = 2, 3, 4, 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("nosuch", "nosuch"),
        ("--nosuch status", "--nosuch"),
        ("send --nosuch x", "--nosuch"),
        ("send", "PATH"),
        ("send - --entity users --producer=", "--producer"),
        ("check nosuch.ndjson", "nosuch.ndjson: no such file"),
        ("check --entity nosuch -", "'nosuch'"),
        ("check -", "--entity"),
        ("delete users nosuch", "no key of users"),
        ("delete milestones 1", "milestone_id:user_id"),
        ("schema nosuch", "'nosuch' is not a schema"),
        ("export --format pdf", "pdf"),
        ("topics create --partitions 0", "partitions"),
        ("demo --records 1", "records"),
    ],
)
def test_wrong_usage(local: Buddy, arguments: str, says: str) -> None:
    assert says in local.run(*arguments.split()).complained(USAGE)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("--broker nosuch status", SETTINGS, "embedded:DIRECTORY"),
        ("--broker kafka:127.0.0.1:1 status", SETTINGS, "kafka://"),
        ("--broker kafka://127.0.0.1:many status", SETTINGS, "host:port"),
        ("--broker kafka://127.0.0.1:1 status", UNREACHABLE, "127.0.0.1:1"),
        ("--broker kafka://127.0.0.1:1 run", UNREACHABLE, "127.0.0.1:1"),
        ("--broker kafka://127.0.0.1:1 send -", UNREACHABLE, "127.0.0.1:1"),
        ("--prefix a.b status", SETTINGS, "prefix"),
        ("--log-level loud status", USAGE, "loud"),
        ("--config nosuch.toml config", SETTINGS, "nosuch.toml does not exist"),
        ("--config . config", SETTINGS, "cannot be read"),
    ],
)
def test_wrong_options(local: Buddy, arguments: str, code: int, says: str) -> None:
    words = arguments.split()
    if words[-1] == "-":
        words += ["--entity", "users"]
    assert says in local.run(*words, input=b"{}\n").complained(code)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"prefix = = 2", "line 1"),
        (b"\xff\xfe", "cannot be read"),
        (b"nosuch = 2", "nosuch"),
        (b"kafka = 2", "kafka"),
        (b"kafka = [1]", "kafka"),
        (b"[kafka]\nnosuch = 2", "nosuch"),
        (b'partitions = "many"', "partitions"),
        (b"grace_seconds = -1", "grace_seconds"),
        (b"grace_seconds = inf", "grace_seconds"),
        (b"[kafka]\npassword = 'hunter2'", "password"),
    ],
)
def test_wrong_configuration_file(local: Buddy, content: bytes, says: str) -> None:
    (local.directory / "my.toml").write_bytes(content)
    line = local.run("--config", "my.toml", "config").complained(SETTINGS)
    assert "my.toml" in line
    assert says in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUDDY_PARTITIONS", "many"),
        ("BUDDY_GRACE_SECONDS", "-1"),
        ("BUDDY_GRACE_SECONDS", "inf"),
        ("BUDDY_CLOCK_SKEW_SECONDS", "nan"),
        ("BUDDY_MAX_RECORD_BYTES", "1"),
        ("BUDDY_LOG_LEVEL", "loud"),
    ],
)
def test_wrong_environment(local: Buddy, name: str, value: str) -> None:
    assert name in local.run("config", env={name: value}).complained(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BUDDY_KAFKA_SECURITY_PROTOCOL", "nosuch"),
        ("BUDDY_KAFKA_SASL_MECHANISM", "nosuch"),
        ("BUDDY_KAFKA_PASSWORD_FILE", "nosuch"),
    ],
)
def test_wrong_kafka_setting(local: Buddy, name: str, value: str) -> None:
    line = local.run(
        "--broker", "kafka://127.0.0.1:1", "status", env={name: value}
    ).complained(SETTINGS)  # fmt: skip
    assert "nosuch" in line


def test_the_defaults_work_in_an_empty_directory(tmp_path: Path) -> None:
    """`buddy --help` says: start with `buddy topics create`."""
    buddy = Buddy(tmp_path / "new")
    everything_else = {"BUDDY_BROKER": "", "BUDDY_DATA": "", "BUDDY_EXPORTS": ""}
    buddy.run("topics", "create", env=everything_else).succeeded()


@pytest.mark.parametrize(
    ("command", "place"),
    [("status", "file"), ("run", "file/below"), ("send users.ndjson", "file")],
)
def test_a_file_where_the_log_should_be(local: Buddy, command: str, place: str) -> None:
    (local.directory / "file").touch()
    (local.directory / "users.ndjson").write_bytes(b"{}\n")
    line = local.run("--broker", f"embedded:{place}", *command.split()).complained(STATE)
    assert "file" in line


@pytest.mark.parametrize("command", ["run", "worker", "sink"])
def test_a_file_where_the_state_should_be(local: Buddy, command: str) -> None:
    (local.directory / "file").touch()
    ended = local.start("--data", "file", command).end()
    assert ended.code == STATE, f"{ended}"
    line = ended.err.splitlines()[-1]
    assert line.startswith("buddy: file/")


def test_a_file_where_the_exports_should_be_fails_the_export_alone(local: Buddy) -> None:
    (local.directory / "file").touch()
    service = local.start("--exports", "file", "run").ready()
    line = local.run("export", "--wait").complained(1)
    assert "file" in line
    local.run("status", "--service", "worker", "--service", "sink").succeeded()
    service.stop().succeeded()


def test_a_second_process_on_the_same_state_is_refused(local: Buddy) -> None:
    service = local.start("run").ready()
    for command in ("run", "worker", "sink"):
        ended = local.start(command).end()
        assert ended.code == STATE
        assert "in use by another" in ended.err.splitlines()[-1]
    service.stop().succeeded()


def test_nobody_there_to_answer(local: Buddy) -> None:
    local.run("topics", "create").succeeded()
    (local.directory / "users.ndjson").write_bytes(b"{}\n{}\n")
    sent = local.run("send", "users.ndjson", "--wait", "--timeout", "0.5")
    assert "2 of 2 records have no verdict" in sent.complained(5)
    assert "no sink" in local.run("export", "--timeout", "0.5").complained(5)


@pytest.mark.parametrize("timeout", ["nan", "-1"])
def test_a_timeout_that_is_none(local: Buddy, timeout: str) -> None:
    local.run("topics", "create").succeeded()
    sent = local.run("send", "-", "--entity", "users", "--wait", "--timeout", timeout, deadline=10)
    assert "timeout" in sent.complained(USAGE)


def test_a_request_that_the_sink_would_not_read_is_not_sent(local: Buddy) -> None:
    service = local.start("run").ready()
    line = local.run("export", "--wait", "--id", "a b", "--timeout", "3").complained(USAGE)
    assert "id" in line
    service.stop().succeeded()
