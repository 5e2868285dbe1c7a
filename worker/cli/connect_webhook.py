"""Makes the webhook of incidents that the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from worker.cli.locations import is_host
from worker.cli.settings import secret
from worker.core.topics import Names
from worker.desk.webhook import Webhook
from worker.errors import ConfigurationError

VARIABLE: Final = "BUDDY_INCIDENT_WEBHOOK"


def webhook_of(file: str, environment: Mapping[str, str], names: Names) -> Webhook | None:
    """The webhook whose URL is in the file or the variable; None if there is neither.

    Raises ConfigurationError, whose text holds no part of the URL: it may hold a token.
    """
    url = secret(file or None, environment, VARIABLE)
    if url is None:
        return None
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        usable = usable and parts.username is None  # it would not be sent
        usable = usable and is_host(parts.hostname or "")
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"the webhook of incidents (incident_webhook_file, {VARIABLE}) is no http or https URL,"
            " or has a user in it"
        )
    return Webhook(url.strip(), names)
