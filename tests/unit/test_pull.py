"""What `buddy pull` says of a server, and to a bucket that the server redirects to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit.place_kit import FIRST, ID
from worker.errors import BrokerUnavailable, UsageError
from worker.pull.folder import pull
from worker.pull.server import ExportServer, NothingToPull, Offered, Refused

CONTENT = b"0123456789"
ETAG = hashlib.sha256(CONTENT).hexdigest()
SECRET = "X-Amz-Signature=the-secret-of-the-link"
PATH = "/v1/exports/e/files/users.csv"


class Stub(ThreadingHTTPServer):
    """Redirects to `location`, or serves ranges of `CONTENT` as a bucket does, with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, str]] = []
        self.location: str | None = None
        self.status = 200
        self.problem = b"<Error/>"
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self.server.asked.append({name.lower(): value for name, value in self.headers.items()})
        if self.server.location is not None:
            self._answer(307, b"", ("Location", self.server.location))
        elif self.server.status != 200:
            self._answer(self.server.status, self.server.problem)
        elif "range" in self.server.asked[-1] and "if-range" not in self.server.asked[-1]:
            start = int(self.server.asked[-1]["range"].removeprefix("bytes=").rstrip("-"))
            self._answer(206, CONTENT[start:])
        else:
            self._answer(200, CONTENT)

    def _answer(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running() -> Iterator[Stub]:
    with Stub() as stub:
        thread = threading.Thread(target=stub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield stub
        finally:
            stub.shutdown()
            thread.join()


@pytest.fixture
def bucket() -> Iterator[Stub]:
    with running() as stub:
        yield stub


@pytest.fixture
def api(bucket: Stub) -> Iterator[Stub]:
    with running() as stub:
        stub.location = f"{bucket.url}/exports/users.csv?{SECRET}"
        yield stub


def test_the_bucket_gets_the_range_and_neither_token_nor_etag(api: Stub, bucket: Stub) -> None:
    with ExportServer(api.url, "the-token").open(PATH, 4, ETAG) as (resumes, chunks):
        assert (resumes, b"".join(chunks)) == (True, CONTENT[4:])
    (asked,) = api.asked
    assert asked["authorization"] == "Bearer the-token"
    assert asked["if-range"] == f'"{ETAG}"'
    (found,) = bucket.asked
    assert found["range"] == "bytes=4-"
    assert not found.keys() & {"authorization", "if-range"}


@pytest.mark.parametrize(("status", "kind"), [(403, Refused), (500, BrokerUnavailable)])
def test_an_answer_of_the_bucket_is_told_without_the_link(
    api: Stub, bucket: Stub, status: int, kind: type[Exception]
) -> None:
    bucket.status = status
    server = ExportServer(api.url, None)
    with pytest.raises(kind, match=f"the bucket that .* redirects to answers {status}") as raised:
        server.open(PATH, 0, ETAG).__enter__()
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("location", ["", "/relative", "file:///etc/passwd", "http://[", "http://"])
def test_what_is_no_bucket_is_refused(api: Stub, location: str) -> None:
    api.location = location
    with pytest.raises(Refused, match="is no server"):
        ExportServer(api.url, None).open(PATH, 0, ETAG).__enter__()


def test_a_bucket_that_redirects_is_followed_no_further(api: Stub, bucket: Stub) -> None:
    bucket.location = api.url
    with pytest.raises(Refused, match="answers 307"):
        ExportServer(api.url, "the-token").open(PATH, 0, ETAG).__enter__()
    assert len(api.asked) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_why_a_server_cannot_answer_is_told(
    bucket: Stub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda _seconds: None)
    bucket.status = status
    bucket.problem = b'{"code": "state_unusable", "detail": "the clock is one hour ahead"}'
    with pytest.raises(
        BrokerUnavailable, match=f"answers {status}: the clock is one hour ahead; try again"
    ):
        ExportServer(bucket.url, None).latest([])
    assert len(bucket.asked) == 6, "it was tried again"


class _Emptied(ExportServer):
    """Lists an export `listed` times, at a server that has none any more."""

    def __init__(self, url: str, listed: int) -> None:
        super().__init__(url, None)
        self._left = listed

    def latest(self, formats: Sequence[str]) -> Offered:
        if not self._left:
            return super().latest(formats)
        self._left -= 1
        return Offered(ID, FIRST, full=True, base=None, manifest_sha256=ETAG)


@pytest.mark.parametrize("listed", [0, 1, 2])
def test_the_only_export_removed_in_mid_pull_is_told_with_what_to_do(
    bucket: Stub, tmp_path: Path, listed: int
) -> None:
    bucket.status = 404
    with pytest.raises(NothingToPull) as raised:
        pull(_Emptied(bucket.url, listed), tmp_path, None, [], lambda *_: None)
    none = f"{bucket.url} has no such export"
    removed = (
        f"what was being fetched has been removed at the server, and now {none}; once there is "
        "another, the next pull fetches the newest"
    )
    assert str(raised.value) == (removed if listed else none)
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("login", ["user:secret@", "user%3Asecret%40", "user%40", "user@"])
def test_a_login_in_the_url_is_refused_and_not_repeated(login: str) -> None:
    with pytest.raises(UsageError, match="must not hold a password") as refused:
        ExportServer(f"http://{login}127.0.0.1:1", None)
    assert "secret" not in str(refused.value)
