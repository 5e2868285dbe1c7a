"""Errors of an S3 server, or of the connection to it: their meaning, in one line for people.

The server's own text may hold secrets (keys, signatures), so only its code is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class NotFromS3Error(BotoCoreError):
    """An answer with a status of success that lacks what every answer of S3 has."""

    fmt = "the answer is not that of an S3 server"


S3Failure: TypeAlias = BotoCoreError | ClientError | ResponseParserError | HTTPError
S3_FAILURES: Final = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
"""What a call of a client raises. Where it reads the body of an error, botocore lets through what
urllib3 raises (HTTPError)."""

_SIGNS: Final = {
    "CompleteMultipartUpload": ("ETag",),
    "CreateMultipartUpload": ("UploadId",),
    "GetObject": ("ETag",),
    "HeadObject": ("ETag",),
    "ListMultipartUploads": ("IsTruncated", "Bucket", "MaxUploads"),
    "ListObjectsV2": ("IsTruncated", "Name", "MaxKeys"),
    "PutObject": ("ETag",),
    "UploadPart": ("ETag",),
}
"""By operation: what its answers have, as S3's API reference says; one is enough, since servers
that are like S3 may leave some out."""
_BROKEN: Final = (
    NoConnection, HTTPClientError, IncompleteReadError, FlexibleChecksumError, ResponseParserError,
    NotFromS3Error, HTTPError,
)  # fmt: skip
"""No answer, or one that was changed on its way or is not the server's."""
NO_SUCH_KEY: Final = "NoSuchKey"
MISSING: Final = frozenset({NO_SUCH_KEY, "404"})
"""An answer to HEAD has no body, and so no code but the status."""
THERE: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_REFUSED: Final = frozenset(
    {"403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken",
     "SignatureDoesNotMatch"}
)  # fmt: skip
_SKEWED: Final = "RequestTimeTooSkewed"
_BUSY: Final = frozenset(
    {"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown",
     "Throttling", "ThrottlingException", _SKEWED}
)  # fmt: skip
_BUSY_STATUS: Final = frozenset({302, 307, 408, 429})
"""Of the redirects, the temporary ones."""
_REFUSED_STATUS: Final = frozenset({401, 403})
_REDIRECTS: Final = range(300, 400)
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_RIGHTS: Final = (
    "check the credentials and their rights (docs/operations/exporting.md, Exports in a bucket)"
)


def code_of(error: ClientError) -> str:
    """The server's error code."""
    return error.response.get("Error", {}).get("Code", "unknown")


def is_refusal(error: BaseException) -> bool:
    """Whether other credentials, or more rights, would help."""
    if not isinstance(error, ClientError):
        return False
    code = code_of(error)
    return code in _REFUSED or (_status_of(error) in _REFUSED_STATUS and code != _SKEWED)


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later without any change on our side.

    Of an object that is missing, the server says so: any other 404 was cut, or is a proxy's.
    """
    if isinstance(error, ClientError):
        status, code = _status_of(error), code_of(error)
        if error.operation_name == "GetObject" and status == _NOT_FOUND:
            return code not in {NO_SUCH_KEY, "NoSuchBucket"}
        return status >= _SERVER_ERROR or status in _BUSY_STATUS or code in _BUSY
    if _is_untrusted(error):
        return False
    return isinstance(error, _BROKEN)


def problem_of(error: S3Failure, bucket: str) -> str:
    """What is wrong and what to do, in one line for people."""
    if isinstance(error, ClientError):
        code, status = code_of(error), _status_of(error)
        if code == "NoSuchBucket":
            return f"there is no bucket {bucket}: create it, or change `exports`"
        if code == _SKEWED:
            return f"the clock of this machine, or of the server, is wrong ({code}): set it"
        if is_refusal(error):
            return f"access was refused ({code or status}): {_RIGHTS}"
        if status in _REDIRECTS:
            return f"the server sends elsewhere ({code or status}): is the endpoint right?"
        if status >= _SERVER_ERROR:
            return f"the server failed ({code or status}): look at its log"
        hint = "is the endpoint right, and does no proxy refuse it?"
        return f"{error.operation_name} failed ({code or status}): {hint}"
    kind = type(error).__name__
    if _is_untrusted(error):
        return (
            f"the server's certificate is not trusted ({kind}): name its authority in AWS_CA_BUNDLE"
        )
    if is_outage(error):
        return f"no answer from the server ({kind}): is it there, and is the endpoint right?"
    return f"{kind}: {_RIGHTS}"  # no credentials, no such profile, no region


def end_redirects(client: S3Client) -> None:
    """Let a redirect that names no region be an error of that client.

    botocore asks for the bucket's region at each redirect, and would do so for the redirect of
    that question as well, until Python's stack is full.
    """

    def end(response: Any, operation: Any, **_: Any) -> None:
        if response is None:  # there was no answer
            return
        answer, parsed = response
        if answer.status_code in _REDIRECTS and "x-amz-bucket-region" not in answer.headers:
            raise ClientError(parsed, operation.name)

    client.meta.events.register_first("needs-retry.s3.HeadBucket", end)


def refuse_strangers(client: S3Client) -> None:
    """Let an answer that is not S3's be an error of that client: a portal's or a proxy's page.

    botocore takes such a page for an empty listing, or for an object that was written.
    """

    def check(http_response: Any, parsed: Any, signs: Sequence[str], **_: Any) -> None:
        if http_response.status_code < _REDIRECTS.start and not any(s in parsed for s in signs):
            raise NotFromS3Error

    for operation, signs in _SIGNS.items():
        client.meta.events.register(f"after-call.s3.{operation}", partial(check, signs=signs))


def _status_of(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _is_untrusted(error: BaseException) -> bool:
    return isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
