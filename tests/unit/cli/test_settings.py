"""Settings: logins in URLs are refused and never repeated; variables that are no setting are named.

The rest of what settings say is tested where it matters, and in tests/acceptance/test_errors.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.files_kit import improper
from worker.cli.connect_broker import connect
from worker.cli.settings import environment_names, load, secret, shown, unknown_variables
from worker.errors import ConfigurationError

SECRET = "tr0ub4dor"
LOGIN = f"buddy:{SECRET}" + "@"  # in two parts: no file of ours holds a login in an address

LOGINS = [
    ("broker", f"kafka://{LOGIN}kafka:9092"),
    ("broker", f"kafka://kafka-1:9092,{LOGIN}kafka-2:9092"),
    ("broker", f"kafka:{LOGIN}kafka:9092"),
    ("broker", f"kafka://buddy:{SECRET}/with/slashes@kafka:9092"),
    ("broker", f"kafka://buddy:{SECRET}"),
    ("broker", f"kafka://kafka:9092?password={SECRET}"),
    ("broker", f"https://{LOGIN}kafka:9092"),
    ("broker", f"embedded:kafka://{LOGIN}kafka:9092"),
    ("broker", f"embedded://{LOGIN}host/broker"),
    ("broker", f"embedded:{LOGIN}host"),
    ("broker", SECRET),
    ("exports", f"s3://{LOGIN}bucket/prefix"),
    ("exports", f"s3://AKIA:{SECRET}/with/slashes@bucket"),
    ("exports", f"s3://AKIA%3A{SECRET}%40bucket/prefix"),
    ("exports", f"s3://bucket/prefix?secret={SECRET}"),
    ("exports", f"s3:{LOGIN}bucket"),
    ("exports", f"https://{LOGIN}s3.example.org/bucket"),
    ("data", f"s3://{LOGIN}bucket"),
    ("s3.endpoint", f"https://{LOGIN}s3.example.org"),
    ("s3.endpoint", f"https://s3.example.org/?X-Amz-Signature={SECRET}"),
    ("s3.endpoint", f"{LOGIN}s3.example.org"),
    ("http_host", f"{LOGIN}host"),
    ("http_host", f"http://{SECRET}"),
    ("metrics_host", f"{LOGIN}host"),
    ("incident_webhook_file", f"https://hooks.example.org/{SECRET}"),
    ("http_tokens_file", f"{LOGIN}host"),
    ("kafka.ca_file", f"https://{LOGIN}host/ca.pem"),
    ("kafka.token_file", f"{LOGIN}host"),
]


@pytest.mark.parametrize(("key", "value"), LOGINS)
def test_a_login_in_a_url_is_refused_and_not_repeated(key: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "buddy.toml"
    table, _, name = key.rpartition(".")
    file.write_text((f"[{table}]\n" if table else "") + f'{name} = "{value}"\n')
    variable = f"BUDDY_{key.replace('.', '_').upper()}"
    lines = {
        str(file): refusal(str(file), {}, {}),
        variable: refusal(None, {variable: value}, {}),
    }
    if not table:
        lines["options"] = refusal(None, {}, {name: value})
    for source, line in lines.items():
        assert line.startswith(f"{source}: ")
        assert f"`{name}` must be" in line
        assert SECRET not in line
        assert ("password_file" in line or "secret_access_key_file" in line) == (
            name in ("broker", "exports", "endpoint") and ("@" in value or "%40" in value)
        )


@pytest.mark.parametrize(
    "key", ["kafka.sasl_mechanism", "kafka.username", "s3.region", "program_name"]
)
def test_a_login_in_a_setting_that_takes_no_url_is_masked(key: str) -> None:
    variable = f"BUDDY_{key.replace('.', '_').upper()}"
    settings = load(None, {variable: f"kafka://{LOGIN}host:9092"}, {})
    printed = str(shown(settings, {}))
    assert "kafka://***@host:9092" in printed
    assert SECRET not in printed


def test_no_error_repeats_a_login_that_is_no_such_word() -> None:
    url = f"kafka://{LOGIN}host"
    assert SECRET not in refusal(None, {"BUDDY_LOG_LEVEL": url}, {})
    settings = load(None, {"BUDDY_BROKER": "kafka://h", "BUDDY_KAFKA_SASL_MECHANISM": url}, {})
    with pytest.raises(ConfigurationError) as raised:
        connect(settings, {})
    assert "`$.sasl_mechanism`" in str(raised.value)
    assert SECRET not in str(raised.value)


def refusal(file: str | None, environment: dict[str, str], options: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load(file, environment, options)
    assert raised.value.__cause__ is None
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("broker", "embedded:buddy-data/broker"),
        ("broker", "embedded:///var/lib/buddy@prod/broker"),
        ("broker", "embedded:C:/data"),
        ("broker", "kafka://kafka"),
        ("broker", "kafka://kafka-1.example.org:9092, kafka-2:9092/"),
        ("broker", "kafka://[::1]:9092,127.0.0.1:9093"),
        ("exports", "/srv/team@prod/exports"),
        ("exports", "s3://bucket/team@prod/a:b"),
        ("s3_endpoint", "http://127.0.0.1:9000"),
        ("s3_endpoint", "https://s3.example.org/path/"),
    ],
)
def test_addresses_without_a_login_are_taken(key: str, value: str) -> None:
    settings = load(None, {f"BUDDY_{key.upper()}": value}, {})
    assert value in (settings.broker, settings.exports, settings.s3.endpoint)


@pytest.mark.parametrize("host", ["a..b", ".a", "a" * 64, "ok." + "a" * 64, "a\udcff", "a\0"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("metrics_host", "{}"),
        ("http_host", "{}"),
        ("broker", "kafka://{}"),
        ("broker", "kafka://localhost:9092,{}:9092"),
    ],
)
def test_a_host_that_no_resolver_takes_is_refused(name: str, form: str, host: str) -> None:
    assert f"`{name}` must be" in refusal(None, {}, {name: form.format(host)})


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::", "localhost", "example.org.", "münchen"])
def test_other_hosts_are_taken(host: str) -> None:
    assert load(None, {}, {"http_host": host}).http_host == host


@pytest.mark.parametrize("name", ["data", "exports", "broker"])
def test_a_directory_that_no_system_takes_is_refused(name: str) -> None:
    value = "embedded:a\0b" if name == "broker" else "a\0b"
    assert f"`{name}` must be" in refusal(None, {}, {name: value})


@pytest.mark.parametrize("text", [f"{SECRET}\n2", f"{SECRET}\0", f"{SECRET}\udcff"])
def test_a_login_that_no_protocol_carries_is_refused_and_not_repeated(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text.encode(errors="surrogateescape"))
    for named in (None, str(file)):
        with pytest.raises(ConfigurationError, match=r"BUDDY_HTTP_TOKEN|secret file") as raised:
            secret(named, {"BUDDY_HTTP_TOKEN": text}, "BUDDY_HTTP_TOKEN")
        assert SECRET not in str(raised.value)
    for variable in ("BUDDY_KAFKA_USERNAME", "BUDDY_S3_ACCESS_KEY_ID"):
        line = refusal(None, {variable: text}, {})
        assert variable in line
        assert SECRET not in line


def test_line_ends_behind_a_secret_do_not_belong_to_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("pässword\r\n")
    assert secret(str(tmp_path / "secret"), {}, "X") == "pässword"
    assert secret(None, {"X": "pässword\n"}, "X") == "pässword"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BUDDY_GRACE_SECOND", "BUDDY_GRACE_SECONDS"),
        ("BUDDY_KAFKA_PASWORD", "BUDDY_KAFKA_PASSWORD"),
        ("BUDDY_METRIC_PORT", "BUDDY_METRICS_PORT"),
        ("BUDDY_CONFIGS", "BUDDY_CONFIG"),
        ("BUDDY_WORKSPACE_DOMAIN", None),
    ],
)
def test_a_variable_that_is_no_setting_is_named(name: str, nearest: str | None) -> None:
    assert unknown_variables({name: "5", "PATH": "x"}) == {name: nearest}
    assert unknown_variables({name: ""}) == {}, "empty counts as not set"


def test_every_setting_is_known() -> None:
    assert unknown_variables(dict.fromkeys(environment_names(), "x")) == {}


def test_what_kubernetes_sets_for_a_service_called_buddy_is_no_setting() -> None:
    links = {
        "BUDDY_SERVICE_HOST": "127.0.0.1",
        "BUDDY_SERVICE_PORT": "9090",
        "BUDDY_SERVICE_PORT_HTTP": "9090",
        "BUDDY_PORT": "tcp://127.0.0.1:9090",
        "BUDDY_PORT_9090_TCP": "tcp://127.0.0.1:9090",
        "BUDDY_PORT_9090_TCP_PROTO": "tcp",
        "BUDDY_PORT_9090_TCP_PORT": "9090",
        "BUDDY_PORT_9090_TCP_ADDR": "127.0.0.1",
        "BUDDY_METRICS_SERVICE_HOST": "127.0.0.1",
        "BUDDY_METRICS_PORT": "tcp://127.0.0.1:9090",
    }
    assert unknown_variables(links) == {}
    assert load(None, links, {}).metrics_port == 0
    assert load(None, {"BUDDY_METRICS_PORT": "9090"}, {}).metrics_port == 9090


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "large"])
def test_what_is_no_small_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A pipe is not waited for."""
    path = improper(tmp_path / "file", kind)
    reason = "it is larger than" if kind == "large" else "it is no regular file"
    with pytest.raises(ConfigurationError, match=f"^configuration file .* be read: {reason}"):
        load(str(path), {}, {})
    with pytest.raises(ConfigurationError, match=f"^secret file .* be read: {reason}"):
        secret(str(path), {}, "BUDDY_KAFKA_PASSWORD")


def test_values_that_are_nested_too_deeply_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="BUDDY_SCHEDULES is no JSON"):
        load(None, {"BUDDY_SCHEDULES": "[" * 100_000}, {})
    file = tmp_path / "buddy.toml"
    file.write_text("x = " + "[" * 5_000 + "]" * 5_000)
    with pytest.raises(ConfigurationError, match="nested too deeply"):
        load(str(file), {}, {})


@pytest.mark.parametrize("state", ["desk", "index", "sink"])
@pytest.mark.parametrize("below", ["", "/spool", "/spool/../x"])
def test_no_place_may_lie_where_state_is_emptied(tmp_path: Path, state: str, below: str) -> None:
    data, link = tmp_path / "data", tmp_path / "link"
    link.symlink_to(data / state)
    for place in (f"{data}/{state}{below}", f"{link}{below}"):
        for name, value in (("broker", f"embedded:{place}"), ("exports", place)):
            with pytest.raises(ConfigurationError, match=rf"`{name}` must not lie in {state}/"):
                load(None, {}, {"data": str(data), name: value})


@pytest.mark.parametrize("place", ["", "/broker", "/sinks", "/sink/../exports"])
def test_other_places_below_data_are_fine(tmp_path: Path, place: str) -> None:
    for name, value in (
        ("broker", f"embedded:{tmp_path}{place}"),
        ("exports", f"{tmp_path}{place}"),
    ):
        assert getattr(load(None, {}, {"data": str(tmp_path), name: value}), name) == value
