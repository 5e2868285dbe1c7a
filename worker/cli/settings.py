"""Settings: one TOML file, environment variables over it, command-line options over both.

Every setting is a field below. Its environment variable is `BUDDY_` and the field's name in
capitals (`BUDDY_GRACE_SECONDS`). For a field of a table, the table's name stands between
(`BUDDY_KAFKA_USERNAME`). `BUDDY_SCHEDULES` holds all `[[schedules]]` as a JSON array. Secrets come
from files or from the environment, never from the TOML file, an option or a URL.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from worker.cli.apart import check_apart
from worker.cli.locations import (
    check_broker,
    check_directory,
    check_endpoint,
    check_exports,
    check_files,
    check_host,
)
from worker.cli.sendable import check_sendable
from worker.errors import ConfigurationError
from worker.sink.schedule import DEFAULTS, Schedule
from worker.small_files import read_small

DEFAULT_FILE: Final = "buddy.toml"
_MASK: Final = "***"
_LOGIN: Final = re.compile(r"(?<=://)\S*(?=@)")
"""Matches the login in a URL, also in a setting that takes no URL."""

Level = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(ge=0, le=365 * 24 * 3600)]


class KafkaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[kafka]` table: the connection to a Kafka cluster. For a secret, it names a file."""

    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    key_password_file: str | None = None
    token_file: str | None = None

    def __post_init__(self) -> None:
        check_sendable("username", self.username)
        check_files(self)


class S3Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `[s3]` table: the connection to the server of an exports bucket.

    Values that are not set here come from the usual AWS sources: AWS_* variables, profiles, roles.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key_file: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            check_endpoint(self.endpoint)
        check_sendable("access_key_id", self.access_key_id)
        check_files(self)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings in force. Times in seconds, sizes in bytes, unless the name says otherwise."""

    broker: str = "embedded:buddy-data/broker"
    prefix: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,100}$")] = "buddy"
    data: str = "buddy-data"
    exports: str = "buddy-exports"
    partitions: Annotated[int, Meta(ge=1, le=1000)] = 4
    grace_seconds: Seconds = 30.0
    clock_skew_seconds: Seconds = 60.0
    max_record_bytes: Annotated[int, Meta(ge=1024, le=64 * 1024 * 1024)] = 1024 * 1024
    max_parked: Annotated[int, Meta(ge=1)] = 200_000
    max_parked_mib: Annotated[int, Meta(ge=1, le=1024 * 1024)] = 256
    log_level: Level = "info"
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    export_patience_seconds: Seconds = 60.0
    program_name: Annotated[str, Meta(min_length=1, max_length=200)] = "Buddy Program"
    keep_exports: Annotated[int, Meta(ge=0)] = 0
    keep_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    show_values: bool = False
    incident_webhook_file: str = ""
    http: bool = False
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    http_tokens_file: str = ""
    http_redirect_downloads: bool = False
    schedules: tuple[Schedule, ...] = DEFAULTS
    kafka: KafkaSettings = KafkaSettings()
    s3: S3Settings = S3Settings()

    def __post_init__(self) -> None:
        check_broker(self.broker)
        check_directory("data", self.data)
        check_exports(self.exports)
        check_host("metrics_host", self.metrics_host)
        check_host("http_host", self.http_host)
        check_files(self)
        check_apart(self.data, self.broker, self.exports)
        names = [schedule.name for schedule in self.schedules]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two schedules are called {twice[0]!r}: each needs a name of its own")


TABLES: Final[Mapping[str, type[msgspec.Struct]]] = {"kafka": KafkaSettings, "s3": S3Settings}
TOKEN: Final = "BUDDY_HTTP_TOKEN"  # noqa: S105 -- the name of a variable
"""The variable of the token that `buddy pull` sends, as an alternative to `--token-file`."""
SECRETS: Final = frozenset(
    {
        TOKEN,
        "BUDDY_INCIDENT_WEBHOOK",
        "BUDDY_KAFKA_PASSWORD",
        "BUDDY_KAFKA_KEY_PASSWORD",
        "BUDDY_S3_SECRET_ACCESS_KEY",
    }
)
"""Variables that hold a secret itself, as an alternative to a secret file."""

_LINK_NAME: Final = re.compile(
    r"BUDDY_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_[A-Z]+(_[A-Z]+)?)"
)
_LINK_VALUE: Final = re.compile(r"(tcp|udp|sctp)://\S+")


def environment_names() -> frozenset[str]:
    """Every environment variable that `load` and `secret` read."""
    names = {_variable(f.name) for f in msgspec.structs.fields(Settings) if f.name not in TABLES}
    for table, kind in TABLES.items():
        names |= {_variable(table, f.name) for f in msgspec.structs.fields(kind)}
    return frozenset(names | SECRETS | {"BUDDY_CONFIG"})


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Variables named `BUDDY_…` that are no setting, each with the nearest setting or None.

    They are no error: other programs share the prefix (a Buddy CI pipeline sets forty of them).
    """
    known = environment_names()
    found: dict[str, str | None] = {}
    for name, value in sorted(environment.items()):
        ours = name.startswith("BUDDY_") and name not in known
        if ours and value and not _is_service_link(name, value):
            found[name] = next(iter(get_close_matches(name, known, 1, 0.8)), None)
    return found


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set the variable, for a service called `buddy` or `buddy-…`.

    The port variable of the service `buddy-metrics` has the name of the setting `metrics_port`.
    """
    return bool(
        _LINK_NAME.fullmatch(name) or (name.endswith("_PORT") and _LINK_VALUE.fullmatch(value))
    )


def load(file: str | None, environment: Mapping[str, str], options: Mapping[str, Any]) -> Settings:
    """The settings in force. Options that are None were not given.

    Raises ConfigurationError with one line that names the setting and its source.
    """
    environment = {n: v for n, v in environment.items() if not _is_service_link(n, v)}
    named = file or environment.get("BUDDY_CONFIG")
    merged = _from_file(named)
    _check(merged, named or DEFAULT_FILE)
    for table, kind in TABLES.items():
        for field in msgspec.structs.fields(kind):
            variable = _variable(table, field.name)
            if environment.get(variable):
                merged[table] = {**merged.get(table, {}), field.name: environment[variable]}
                _check(merged, variable)
    for field in msgspec.structs.fields(Settings):
        variable = _variable(field.name)
        if field.name not in TABLES and environment.get(variable):
            merged[field.name] = _value(field.name, environment[variable], variable)
            _check(merged, variable)
    merged.update({name: value for name, value in options.items() if value is not None})
    return _check(merged, "options")


def secret(file: str | None, environment: Mapping[str, str], variable: str) -> str | None:
    """A secret: the content of the file, or of the variable if no file is named; None if neither.

    Line ends behind it do not belong to it. Raises ConfigurationError, which never repeats the
    secret, if the file cannot be read, or if this is no secret that a server can be sent.
    """
    if file is None:
        found = environment.get(variable, "").rstrip("\r\n") or None
    else:
        try:
            found = read_small(Path(file)).decode().rstrip("\r\n")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigurationError(f"secret file {file} cannot be read: {reason}") from None
    try:
        check_sendable(variable if file is None else f"secret file {file}", found)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    return found


def _variable(*names: str) -> str:
    return "_".join(("BUDDY", *names)).upper()


def _value(name: str, text: str, variable: str) -> Any:
    """The value of a variable: its text; for the schedules, parsed JSON."""
    if name != "schedules":
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise ConfigurationError(
            f"{variable} is no JSON: write an array of tables such as "
            '[{"name": "nightly", "cron": "0 2 * * *"}], or [] for none'
        ) from None


def _from_file(named: str | None) -> dict[str, Any]:
    path = Path(named or DEFAULT_FILE)
    try:
        return tomllib.loads(read_small(path).decode())
    except FileNotFoundError:
        if named is None:
            return {}
        raise ConfigurationError(f"configuration file {named} does not exist") from None
    except (OSError, ValueError) as error:  # not UTF-8, not TOML
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"configuration file {path} cannot be read: {reason}") from None
    except RecursionError:
        reason = "its values are nested too deeply"
        raise ConfigurationError(f"configuration file {path} cannot be read: {reason}") from None


def _check(merged: dict[str, Any], source: str) -> Settings:
    try:
        found = msgspec.convert(merged, Settings, strict=False)
        msgspec.json.encode(found)  # announcements, manifests and answers name places
        return found
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{source}: a text holds a byte that is not UTF-8: use another name"
        ) from None
    except msgspec.ValidationError as error:
        text = str(error).replace(" - at `$.", ": `").replace("Object contains", "contains")
        text = without_logins(text)
        raise ConfigurationError(f"{source}: {text}; see deploy/buddy.example.toml") from None


def shown(settings: Settings, environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings as `buddy config` prints them. Secrets are masked, also logins in URLs."""
    plain: dict[str, Any] = without_logins(msgspec.to_builtins(settings))
    set_here = [name for name in sorted(SECRETS) if environment.get(name)]
    return {**plain, "secrets": dict.fromkeys(set_here, _MASK)}


def without_logins(value: Any) -> Any:
    """The value, with the login masked in each URL in it."""
    if isinstance(value, dict):
        return {name: without_logins(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_logins(item) for item in value]
    return _LOGIN.sub(_MASK, value) if isinstance(value, str) else value
