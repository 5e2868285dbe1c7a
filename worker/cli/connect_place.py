"""Makes the place of exports that the settings name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.settings import S3Settings, Settings, secret
from worker.errors import ConfigurationError
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.place import ExportPlace

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BUCKET = re.compile(r"s3://(?![^/]*\.\.)([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
"""Capitals and underscores are left out: few servers take them, and only if told to."""
_READ_SECONDS = 20
"""Seconds of silence after which a server is unavailable. boto's default of 60 s is too long."""

_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def place_of(
    settings: Settings, environment: Mapping[str, str], patience: float | None = None
) -> ExportPlace:
    """The place of `settings.exports`: a directory, or `s3://bucket/prefix`.

    Each call to an unavailable server is retried for `patience` seconds, by default for minutes.
    This function sends no request. Raises ConfigurationError.
    """
    if not settings.exports.startswith("s3:"):
        return DirectoryPlace(Path(settings.exports))
    found = _BUCKET.fullmatch(settings.exports)
    prefix = "" if found is None else (found[2] or "").strip("/")
    if found is None or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ConfigurationError(
            "exports names no bucket as S3 allows them: use a directory or s3://bucket/prefix"
        )
    from worker.exports.places.bucket import BucketPlace
    from worker.exports.places.objects import Bucket
    from worker.exports.places.outages import PATIENCE_SECONDS

    seconds = PATIENCE_SECONDS if patience is None else patience
    connect = partial(client_of, settings.s3, environment)
    bucket = Bucket(connect, found[1], prefix, patience=seconds)
    return BucketPlace(bucket, Path(settings.data) / "sink" / "staging")


def client_of(settings: S3Settings, environment: Mapping[str, str]) -> S3Client:
    """A client that tries each call once. Raises ConfigurationError."""
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    from worker.exports.places.s3_errors import end_redirects, refuse_strangers

    key = secret(settings.secret_access_key_file, environment, "BUDDY_S3_SECRET_ACCESS_KEY")
    if (settings.access_key_id is None) != (key is None):
        raise ConfigurationError(
            "[s3]: access_key_id and the secret access key go together: set both, or neither to "
            "use what the environment gives (AWS_ACCESS_KEY_ID, a profile, a role)"
        )
    keys = {"access_key_id": settings.access_key_id, "the secret access key": key}
    keys |= {name: environment.get(name) for name in _AWS_KEYS}
    for name, text in keys.items():
        if text and not (text.isascii() and text.isprintable()):
            raise ConfigurationError(f"[s3]: {name} holds characters that no key has")
    # A self-hosted server rarely has a DNS name for each bucket.
    style: Any = {"addressing_style": "path"} if settings.endpoint else None
    # `outages` retries and reports, so boto tries once. A hanging server is reported within 30 s.
    config = Config(
        s3=style,
        signature_version="s3v4",  # of presigned URLs, too: boto would sign some by version 2
        connect_timeout=10,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
    )
    try:
        core = botocore.session.get_session()
        core.register_component("data_loader", _loader())
        session = boto3.Session(
            aws_access_key_id=settings.access_key_id,
            aws_secret_access_key=key,
            region_name=settings.region or environment.get("AWS_REGION") or None,
            botocore_session=core,
        )
        client = session.client("s3", endpoint_url=settings.endpoint, config=config)
    except ValueError:  # its text repeats the URL, which may hold a secret
        raise ConfigurationError(
            "[s3]: the endpoint (or AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) is no URL of a server"
        ) from None
    except BotoCoreError as error:
        raise ConfigurationError(f"[s3]: {' '.join(str(error).split())}") from None
    end_redirects(client)
    refuse_strangers(client)
    return client


@cache
def _loader() -> Any:
    """What knows the calls of S3, for all clients: each would take 12 MB and 0.1 s for its own."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")
