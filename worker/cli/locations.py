"""Checks settings that name a location: an address, a bucket, an endpoint or a directory.

No location may hold a login, since error lines, logs, manifests and `ps` print URLs. A text that
may hold a login is refused, and the error never repeats the text.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

_HOST: Final = r"(?:[\w.-]+|\[[\w:.%]+\])(?::\d{1,5})?"
_KAFKA: Final = re.compile(rf"kafka://{_HOST}(?:\s*,\s*{_HOST})*/*")
_BUCKET: Final = re.compile(r"s3://[^\s/:@?#%]+(?:/[^?#]*)?")
_ENDPOINT: Final = re.compile(rf"https?://{_HOST}(?:/[^\s@?#]*)?")
_NO_DIRECTORY: Final = re.compile(r"://|:[^@]*@|^//[^/@][^@]*@|\0")
"""Matches a URL, a text that looks like `user:password@host`, and what no system takes."""

_NO_HOST: Final = re.compile(r"[\0@/]")

_KAFKA_LOGIN: Final = (
    "put user and password into `username` and `password_file` of [kafka] (or into "
    "BUDDY_KAFKA_PASSWORD), never into a URL"
)
_S3_LOGIN: Final = (
    "put the key into `access_key_id` and `secret_access_key_file` of [s3] (or into "
    "BUDDY_S3_SECRET_ACCESS_KEY), never into a URL"
)


def check_broker(text: str) -> None:
    """Raises ValueError unless the text is `embedded:DIRECTORY` or `kafka://host:port,…`."""
    scheme, _, directory = text.partition(":")
    if scheme == "embedded":
        is_usable = bool(directory) and not _NO_DIRECTORY.search(directory)
    else:
        is_usable = bool(_KAFKA.fullmatch(text)) and all(map(is_host, _hosts(directory)))
    if not is_usable:
        form = "`broker` must be embedded:DIRECTORY or kafka://host:port,host:port"
        raise ValueError(_refusal(form, text, _KAFKA_LOGIN))


def check_exports(text: str) -> None:
    """Raises ValueError unless the text is a directory or `s3://bucket/prefix`."""
    is_bucket = text.startswith("s3:")
    if not _BUCKET.fullmatch(text) if is_bucket else _NO_DIRECTORY.search(text):
        form = "`exports` must be a directory or s3://bucket/prefix"
        raise ValueError(_refusal(form, text, _S3_LOGIN))


def check_endpoint(text: str) -> None:
    """Raises ValueError unless the text is the URL of a server, such as `https://host:port`."""
    if not _ENDPOINT.fullmatch(text):
        form = "`endpoint` must be http://host:port or https://host"
        raise ValueError(_refusal(form, text, _S3_LOGIN))


def check_directory(name: str, text: str) -> None:
    """Raises ValueError, which names the setting, if the text looks like a URL or holds a login."""
    if _NO_DIRECTORY.search(text):
        raise ValueError(f"`{name}` must be a directory of this machine, not a URL")


def check_files(settings: msgspec.Struct) -> None:
    """Raises ValueError, which names the setting, if a file looks like a URL or holds a login."""
    for name in settings.__struct_fields__:
        text = getattr(settings, name)
        if name.endswith("_file") and text is not None and _NO_DIRECTORY.search(text):
            raise ValueError(f"`{name}` must be a file of this machine")


def check_host(name: str, text: str) -> None:
    """Raises ValueError, which names the setting, if the text can be no host name or address."""
    if not is_host(text):
        raise ValueError(f"`{name}` must be a host name or an address")


def _hosts(addresses: str) -> list[str]:
    stripped = (one.strip(" /") for one in addresses.split(","))
    return [one.rpartition(":")[0] or one for one in stripped]


def is_host(text: str) -> bool:
    """Whether resolvers can be asked for the text: of others, Python's codec ends in an error."""
    try:
        text.encode("idna")
    except UnicodeError:  # an empty label, or one of more than 63 characters
        return False
    return not _NO_HOST.search(text)


def _refusal(form: str, text: str, login: str) -> str:
    return f"{form}; {login}" if "@" in text or "%40" in text else form
