"""`buddy pull`: keeps a folder of finished exports up to date, from the HTTP API.

An export appears in the folder in one step, once each of its files has the SHA-256 that the
manifest lists. A pull that is killed leaves a hidden directory. The next pull goes on with it, and
fetches only the bytes that are missing. The link `latest` names the newest export.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

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
from worker.exports.layout import MANIFEST, id_in
from worker.exports.manifest import MOST_BYTES, ExportedFile, decode
from worker.private import DIRECTORY_MODE, make_private

T = TypeVar("T")

LATEST: Final = "latest"
_LOCK: Final = ".pull.lock"
_PARTIAL: Final = ".partial"
_CHUNK: Final = 1 << 20
_PAGE: Final = 100
_LONGEST_CHAIN: Final = 10_000
_LARGEST_ANSWER: Final = 64 << 20
_TRIES: Final = 5
_AWAY: Final = (429, 502, 503, 504)
_TIMEOUT: Final = urllib3.Timeout(connect=10, read=60)

Advance = Callable[[str, int, int], None]
"""Called with the name of a file, the bytes that are there, and its size."""


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


class _GoneError(Exception):
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
        with _problems(url):
            parsed = urllib3.util.parse_url(self._url)
        has_more = parsed.query is not None or parsed.fragment is not None
        if parsed.scheme not in ("http", "https") or not parsed.host or has_more:
            raise UsageError("the server must be a URL such as http://127.0.0.1:8080")
        if parsed.auth is not None:
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

        Raises _GoneError if it is not there any more.
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
                raise _GoneError
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
            with _problems(self._url):
                content = answer.read(_LARGEST_ANSWER)
            return msgspec.json.decode(content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Refused(f"{self._url} is no API of Buddy Stream") from None
        finally:
            answer.close()

    def _get(self, path: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        with _problems(self._url):
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
        with _problems(bucket):
            return self._pool.request(
                "GET", location, headers=headers, preload_content=False, redirect=False
            )


def _check(server: str, answer: urllib3.BaseHTTPResponse) -> None:
    """Raise what an answer without content means."""
    if answer.status in (200, 206):
        return
    if answer.status == 410:
        raise _GoneError
    problem = _Problem()
    with suppress(HTTPError, msgspec.MsgspecError, UnicodeDecodeError):
        problem = msgspec.json.decode(answer.read(_CHUNK), type=_Problem)
    if problem.code == "damaged_export":
        raise StateError(f"damaged at the server: {problem.detail[:300]}")
    if answer.status >= 500:
        raise BrokerUnavailable(f"{server} answers {answer.status}: try again")
    raise Refused(f"{server} answers {answer.status}: {problem.detail[:300]}")


def pull(
    server: ExportServer,
    folder: Path,
    bookmark: str | None,
    formats: Sequence[str],
    advance: Advance,
) -> list[str]:
    """Bring the folder up to date; returns the names of the exports that were fetched, in order.

    With a bookmark, the folder gets the whole chain: the last export of the feed with all rows that
    is needed, and every increment after it. Without, it gets the latest export. Raises StateError,
    NothingToPull, BrokerUnavailable and Refused.
    """
    fetched: list[str] = []
    with _locked(folder):
        for _ in range(_TRIES):
            try:
                newest, wanted = _wanted(server, folder, bookmark, formats)
                for offered in wanted:
                    _fetch(server, folder, offered, advance)
                    fetched.append(offered.directory)
            except _GoneError:
                continue  # retention has removed it: the list has changed
            _point_to(folder, newest)
            _sweep(folder)
            return fetched
        raise StateError(f"exports are removed faster than {folder} can fetch them: try again")


def _wanted(
    server: ExportServer, folder: Path, bookmark: str | None, formats: Sequence[str]
) -> tuple[str, list[Offered]]:
    """The newest export, and those that the folder lacks, in the order in which they apply."""
    if bookmark is None:
        latest = _checked(server.latest(formats))
        there = (folder / latest.directory).is_dir()
        return latest.directory, [] if there else [latest]
    newest = ""
    chain: list[Offered] = []
    base: str | None = None
    for offered in server.feed(bookmark, formats):
        if chain and offered.id != base:
            continue  # made beside the chain, by a sink that was replaced
        newest = newest or _checked(offered).directory
        if (folder / _checked(offered).directory).is_dir():
            return newest, chain[::-1]
        chain.append(offered)
        base = offered.base
        if base is None:
            return newest, chain[::-1]
        if len(chain) >= _LONGEST_CHAIN:
            break
    if not chain:
        raise NothingToPull(f"the server has no export of the feed {bookmark}")
    raise NothingToPull(
        f"export {chain[-1].id} of the feed {bookmark} goes on from {base}, which the server does"
        " not have any more, nor this folder: ask for a full export"
    )


def _checked(offered: Offered) -> Offered:
    """The same, once its name is that of an export: it becomes a path."""
    if id_in(offered.directory) != offered.id:
        raise Refused("the server lists an export under a name that no export has")
    return offered


def _fetch(server: ExportServer, folder: Path, offered: Offered, advance: Advance) -> None:
    """Fetch an export into a hidden directory, and rename it once it is whole."""
    partial = folder / f".{offered.directory}{_PARTIAL}"
    path = f"/v1/exports/{offered.directory}"
    with _writing(folder):
        partial.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        manifest = _manifest(server, path, offered, partial / MANIFEST)
        for file in decode(manifest, "manifest.json").files:
            if "\0" in file.path:
                raise StateError("the manifest lists a file whose name no system takes")
            target = partial / file.path
            target.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            _file(server, f"{path}/files/{quote(file.path)}", file, target, advance)
        for directory in {partial, *(each.parent for each in partial.rglob("*"))}:
            _flush(directory)
        partial.rename(folder / offered.directory)
        _flush(folder)


def _manifest(server: ExportServer, path: str, offered: Offered, target: Path) -> bytes:
    """The manifest: that of an earlier pull, or fetched."""
    with suppress(FileNotFoundError), target.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
        if hashlib.sha256(content).hexdigest() == offered.manifest_sha256:
            os.fsync(file.fileno())  # the earlier pull may have been killed before it did so
            return content
    content = b""
    with server.open(path, 0, offered.manifest_sha256) as (_, chunks), _problems(path):
        for chunk in chunks:
            content += chunk
            if len(content) > MOST_BYTES:
                break
    if hashlib.sha256(content).hexdigest() != offered.manifest_sha256:
        raise StateError(f"the manifest of {offered.directory} is damaged: try again")
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return content


def _file(
    server: ExportServer, path: str, file: ExportedFile, target: Path, advance: Advance
) -> None:
    """Fetch the bytes of a file that are missing. Raises StateError if its SHA-256 is wrong."""
    for _ in range(2):
        with target.open("ab+") as kept:
            digest, size = _hashed(kept)
            if size < file.bytes:
                digest, size = _rest(server, path, file, kept, digest, size, advance)
            if size == file.bytes and digest.hexdigest() == file.sha256:
                kept.flush()
                os.fsync(kept.fileno())
                advance(file.path, size, size)
                return
        target.unlink()  # what was there was not of this file: begin anew
    raise StateError(f"{file.path} is damaged on its way or at the server: try again")


def _hashed(kept: Any) -> tuple[Any, int]:
    """The SHA-256 of what is there, and its size."""
    kept.seek(0)
    digest = hashlib.file_digest(kept, "sha256")
    return digest, kept.tell()


def _rest(
    server: ExportServer,
    path: str,
    file: ExportedFile,
    kept: Any,
    digest: Any,
    size: int,
    advance: Advance,
) -> tuple[Any, int]:
    """Append the bytes from `size` on, as far as the connection goes: it is tried again."""
    for _ in range(_TRIES):
        try:
            with server.open(path, size, file.sha256) as (resumes, chunks), _problems(path):
                if size and not resumes:
                    kept.truncate(0)
                    digest, size = hashlib.sha256(), 0
                for chunk in chunks:
                    kept.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    advance(file.path, size, file.bytes)
                    if size > file.bytes:
                        return digest, size
        except BrokerUnavailable:
            if size < file.bytes:
                continue
        if size >= file.bytes:
            return digest, size
    raise BrokerUnavailable(f"{file.path} breaks off at {size} of {file.bytes} bytes: try again")


def _point_to(folder: Path, name: str) -> None:
    """Have the link `latest` name an export."""
    fresh = folder / f".{LATEST}"
    with _writing(folder):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.rename(folder / LATEST)
        _flush(folder)


def _sweep(folder: Path) -> None:
    """Remove what earlier pulls have left of exports that are not wanted any more."""
    for left in folder.glob(f".*{_PARTIAL}"):
        if id_in(left.name[1 : -len(_PARTIAL)]) is not None:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: one pull at a time. Raises StateError."""
    with _writing(folder):
        make_private(folder)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        with _writing(folder):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another pull is at work in {folder}: wait for it") from None
        yield
    finally:
        os.close(lock)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"{folder} cannot be written: {reason}") from None


@contextmanager
def _problems(where: str) -> Iterator[None]:
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


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
