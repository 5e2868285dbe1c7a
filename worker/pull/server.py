"""The HTTP API of a server, as `buddy pull` uses it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError

from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    ConfigurationError,
    StateError,
    UsageError,
)

T = TypeVar("T")

_CHUNK: Final = 1 << 20
_PAGE: Final = 100
_LARGEST_ANSWER: Final = 64 << 20
_TRIES: Final = 5
_AWAY: Final = (429, 502, 503, 504)
_TIMEOUT: Final = urllib3.Timeout(connect=10, read=60)


class NothingToPull(BuddyError):
    """The server has no such export."""


class Refused(BuddyError):
    """The server refuses the request: the token, its role, or the request itself."""

    exit_code = 3


class Offered(msgspec.Struct, frozen=True):
    """A finished export as the server lists it."""

    id: str
    directory: str
    full: bool
    base: str | None
    manifest_sha256: str


class _Page(msgspec.Struct, frozen=True):
    exports: list[Offered]
    next: str | None = None


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = "no reason given"


class ExportGone(Exception):
    """The export was removed while it was being pulled."""


class ExportServer:
    """The HTTP API of a server, for fetching exports. Calls block, and are retried for a while.

    Raises `BrokerUnavailable` if the server stays away, `Refused`, and StateError for a file that
    is damaged at the server.
    """

    def __init__(self, url: str, token: str | None) -> None:
        """Raises UsageError if `url` is no URL of a server, and ConfigurationError.

        No error repeats the token.
        """
        self._url = url.rstrip("/")
        with problems_of(url):
            parsed = urllib3.util.parse_url(self._url)
        has_more = parsed.query is not None or parsed.fragment is not None
        if parsed.scheme not in ("http", "https") or not parsed.host or has_more:
            raise UsageError("the server must be a URL such as http://127.0.0.1:8080")
        if parsed.auth is not None or "%40" in parsed.host:  # a quoted @
            raise UsageError("the URL must not hold a password: use --token-file")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigurationError(
                "the token (--token-file, BUDDY_HTTP_TOKEN) holds characters that no token has"
            )
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        retries = urllib3.Retry(
            total=_TRIES,
            backoff_factor=0.5,
            status_forcelist=_AWAY,
            respect_retry_after_header=False,  # a server could name hours
            raise_on_status=False,  # the last answer says why
        )
        self._pool = urllib3.PoolManager(retries=retries, timeout=_TIMEOUT)

    def latest(self, formats: Sequence[str]) -> Offered:
        """The latest export that holds all rows. Raises NothingToPull."""
        return self._json("/v1/exports/latest", {"format": formats}, Offered)

    def feed(self, bookmark: str, formats: Sequence[str]) -> Iterator[Offered]:
        """The exports of a feed, the newest first."""
        query = {"bookmark": bookmark, "format": formats, "limit": _PAGE}
        while True:
            page = self._json("/v1/exports", query, _Page)
            yield from page.exports
            if page.next is None:
                return
            query["after"] = page.next

    @contextmanager
    def open(self, path: str, start: int, etag: str) -> Iterator[tuple[bool, Iterator[bytes]]]:
        """The bytes of a file from `start` on, and whether they begin there: else at 0.

        Raises ExportGone if it is not there any more.
        """
        wanted = {"Range": f"bytes={start}-"} if start else {}
        condition = {"If-Range": f'"{etag}"'} if start else {}
        server, answer = self._url, self._get(path, wanted | condition)
        try:
            if answer.status == 307:
                answer.close()
                server = f"the bucket that {self._url} redirects to"
                answer = self._follow(server, answer.headers.get("location", ""), wanted)
            if answer.status == 404:
                raise ExportGone
            _check(server, answer)
            yield answer.status == 206, answer.stream(_CHUNK)
        finally:
            answer.close()

    def _json(self, path: str, query: dict[str, Any], kind: type[T]) -> T:
        answer = self._get(f"{path}?{urlencode(query, doseq=True)}", {})
        try:
            if answer.status == 404:
                raise NothingToPull(f"{self._url} has no such export")
            _check(self._url, answer)
            with problems_of(self._url):
                content = answer.read(_LARGEST_ANSWER)
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Refused(f"{self._url} is no API of Buddy Stream") from None
        finally:
            answer.close()

    def _get(self, path: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        with problems_of(self._url):
            return self._pool.request(
                "GET",
                self._url + path,
                headers=self._headers | headers,
                preload_content=False,
                redirect=False,
            )

    def _follow(
        self, bucket: str, location: str, headers: dict[str, str]
    ) -> urllib3.BaseHTTPResponse:
        """The answer of the bucket, which gets no token, and has ETags of its own.

        Whoever has the location has the file, so no error shows it.
        """
        try:
            parsed = urllib3.util.parse_url(location)
        except LocationParseError:
            parsed = urllib3.util.Url()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise Refused(f"{bucket} is no server")
        with problems_of(bucket):
            return self._pool.request(
                "GET", location, headers=headers, preload_content=False, redirect=False
            )


def _check(server: str, answer: urllib3.BaseHTTPResponse) -> None:
    """Raise what an answer without content means."""
    if answer.status in (200, 206):
        return
    if answer.status == 410:
        raise ExportGone
    problem = _Problem()
    with suppress(HTTPError, msgspec.MsgspecError, UnicodeDecodeError):
        problem = msgspec.json.decode(answer.read(_CHUNK), type=_Problem)
    if problem.code == "damaged_export":
        raise StateError(f"damaged at the server: {problem.detail[:300]}")
    if answer.status in _AWAY or answer.status >= 500:
        reason = problem.detail[:300].rstrip(".")
        raise BrokerUnavailable(f"{server} answers {answer.status}: {reason}; try again")
    raise Refused(f"{server} answers {answer.status}: {problem.detail[:300]}")


@contextmanager
def problems_of(where: str) -> Iterator[None]:
    """Turn what goes wrong with a connection into one line."""
    try:
        yield
    except LocationParseError:
        raise UsageError("the server must be a URL such as http://127.0.0.1:8080") from None
    except MaxRetryError as error:
        reason = type(error.reason).__name__ if error.reason else "no answer"
        raise BrokerUnavailable(f"{where} cannot be reached ({reason}): try again") from None
    except HTTPError as error:
        raise BrokerUnavailable(
            f"the connection to {where} broke off ({type(error).__name__}): try again"
        ) from None
