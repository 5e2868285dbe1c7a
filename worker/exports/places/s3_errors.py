"""Errors of an S3 server, or of the connection to it: their meaning, in one line for people.

The server's own text may hold secrets (keys, signatures), so only its code is used.
"""

from __future__ import annotations

from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection

MISSING: Final = frozenset({"NoSuchKey", "404"})
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
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_RIGHTS: Final = (
    "check the credentials and their rights (docs/operations/exporting.md, Exports in a bucket)"
)


def code_of(error: ClientError) -> str:
    """The server's error code."""
    return error.response.get("Error", {}).get("Code", "unknown")


def is_refusal(error: BaseException) -> bool:
    """Whether other credentials, or more rights, would help."""
    return isinstance(error, ClientError) and code_of(error) in _REFUSED


def is_outage(error: BaseException) -> bool:
    """Whether the same call may succeed later without any change on our side."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= _SERVER_ERROR or status == _TOO_MANY or code_of(error) in _BUSY
    if _is_untrusted(error):
        return False
    return isinstance(error, NoConnection | HTTPClientError | IncompleteReadError)


def problem_of(error: BotoCoreError | ClientError, bucket: str) -> str:
    """What is wrong and what to do, in one line for people."""
    if isinstance(error, ClientError):
        code = code_of(error)
        if code == "NoSuchBucket":
            return f"there is no bucket {bucket}: create it, or change `exports`"
        if code == _SKEWED:
            return f"the clock of this machine, or of the server, is wrong ({code}): set it"
        if is_refusal(error):
            return f"access was refused ({code}): {_RIGHTS}"
        return f"{error.operation_name} failed ({code})"
    kind = type(error).__name__
    if _is_untrusted(error):
        return (
            f"the server's certificate is not trusted ({kind}): name its authority in AWS_CA_BUNDLE"
        )
    if is_outage(error):
        return f"no answer from the server ({kind}): is it there, and is the endpoint right?"
    return f"{kind}: {_RIGHTS}"  # no credentials, no such profile, no region


def _is_untrusted(error: BaseException) -> bool:
    return isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
