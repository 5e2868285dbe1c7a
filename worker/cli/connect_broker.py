"""Makes the broker that the settings name, ready to open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from worker.brokers.contract import Broker
from worker.cli.settings import KafkaSettings, Settings, secret, without_logins
from worker.errors import ConfigurationError, StateError
from worker.private import DIRECTORY_MODE, check_link

if TYPE_CHECKING:
    from worker.brokers.kafka.security import KafkaSecurity


def connect(
    settings: Settings,
    environment: Mapping[str, str],
    *,
    read_only: bool = False,
    logs_damage: bool = True,
) -> Broker:
    """The broker of `settings.broker`, not opened yet.

    With `read_only`, it creates no log. Without `logs_damage`, the caller reports damage on Kafka.

    The setting is `embedded:DIRECTORY` or `kafka://host:port,…`. Raises ConfigurationError for
    anything else, and StateError if the directory's parent cannot be created.
    """
    scheme, _, rest = settings.broker.partition(":")
    if scheme == "embedded" and rest:
        from worker.brokers.embedded.broker import EmbeddedBroker

        if not read_only:
            _make_parent(Path(rest))
        return EmbeddedBroker(Path(rest), looks=read_only)
    addresses = rest.removeprefix("//").rstrip("/")
    if scheme == "kafka" and rest.startswith("//") and addresses:
        from worker.brokers.kafka.broker import KafkaBroker

        security = _security(settings.kafka, environment)
        return KafkaBroker(addresses, security, logs_damage=logs_damage)
    raise ConfigurationError("broker is neither embedded:DIRECTORY nor kafka://host:port")


def _make_parent(directory: Path) -> None:
    # The broker creates only its own directory, so that a typo creates no log elsewhere. The parent
    # is by default the data directory, which is ours, so it is created here.
    for link in (directory.parent, directory):
        check_link(link)
    try:
        directory.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    except OSError as error:
        raise StateError(f"{directory.parent} cannot be made: {error.strerror}") from None


def _security(settings: KafkaSettings, environment: Mapping[str, str]) -> KafkaSecurity:
    from worker.brokers.kafka.security import KafkaSecurity

    given = {
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "username": settings.username,
        "password": secret(settings.password_file, environment, "BUDDY_KAFKA_PASSWORD"),
        "ca_file": settings.ca_file,
        "cert_file": settings.cert_file,
        "key_file": settings.key_file,
        "key_password": secret(settings.key_password_file, environment, "BUDDY_KAFKA_KEY_PASSWORD"),
        "token_file": settings.token_file,
    }
    try:
        return msgspec.convert(given, KafkaSecurity)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"[kafka]: {without_logins(str(error))}") from None
