"""Answers that come from something before an S3 server, or are cut on their way."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from struct import pack
from threading import Thread

import pytest

from worker.cli.connect_place import client_of
from worker.cli.settings import S3Settings
from worker.errors import StateError
from worker.exports.places import outages
from worker.exports.places.objects import Bucket

CONTENT = b'{"whole": true}'


class Answers(ThreadingHTTPServer):
    """Gives these answers, the last one again and again: status, body, and how much of it."""

    def __init__(self, *answers: tuple[int, bytes, int]) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.answers = list(answers)
        self.requests = 0
        self.genuine = {CONTENT, b""}
        self.resets = False
        """Whether a connection that is cut is reset."""


class Answering(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Answers

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        status, body, sent = server.answers.pop(0) if server.answers[1:] else server.answers[0]
        self.send_response(status)
        self.send_header("Location", f"http://127.0.0.1:{server.server_port}/other")
        self.send_header("Content-Length", str(len(body)))
        if body in server.genuine:
            self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent < len(body):
            self.close_connection = True
            if server.resets:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
                self.connection.close()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@contextmanager
def bucket_behind(
    *answers: tuple[int, bytes, int], patience: float = 30
) -> Iterator[tuple[Bucket, Answers]]:
    """A bucket whose server gives these answers."""
    with Answers(*answers) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        settings = S3Settings(endpoint=endpoint, region="here", access_key_id="me")
        secrets = {"BUDDY_S3_SECRET_ACCESS_KEY": "secret"}
        bucket = Bucket(
            partial(client_of, settings, secrets), "bucket", "exports", patience=patience
        )
        try:
            yield bucket, server
        finally:
            bucket.close()
            server.shutdown()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.0)


def whole(status: int, body: bytes = b"") -> tuple[int, bytes, int]:
    return status, body, len(body)


def test_an_answer_that_breaks_off_is_asked_for_again() -> None:
    """Its beginning was taken for the object: a manifest that "is none", an export "removed"."""
    told: list[str | None] = []
    cut = (200, CONTENT, 7)
    with bucket_behind(cut, cut, whole(200, CONTENT)) as (bucket, server):
        bucket.tell(told.append)
        assert bucket.read("some/manifest.json") == CONTENT
        assert server.requests == 3
    assert told[0] is not None
    assert "no answer from the server (IncompleteReadError)" in told[0]
    assert told[-1] is None


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_error_that_breaks_off_is_asked_for_again(status: int) -> None:
    """botocore reads the body of an error where it does not translate what urllib3 raises."""
    told: list[str | None] = []
    cut = (status, b"<Error><Code>NoSuchKey</Code></Error>", 9)
    with bucket_behind(cut, cut, whole(200, CONTENT)) as (bucket, server):
        server.resets = True
        bucket.tell(told.append)
        assert bucket.read("some/manifest.json") == CONTENT
    assert told[0] is not None
    assert "no answer from the server (ProtocolError)" in told[0]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_server_that_sends_elsewhere_is_one_line(status: int) -> None:
    """botocore asked for the region at each redirect, of that question as well."""
    with bucket_behind(whole(status), patience=0) as (bucket, server):
        uses = (bucket.objects, lambda: bucket.read("x"), lambda: bucket.size("x"))
        for use in uses:
            with pytest.raises(StateError, match=rf"the server sends elsewhere \({status}\): is"):
                use()
        assert server.requests <= 2 * len(uses)


def test_what_a_proxy_refuses_has_its_status() -> None:
    page = b"<html>the proxy says no</html>"
    for status in (401, 403):
        with (
            bucket_behind(whole(status, page)) as (bucket, _),
            pytest.raises(StateError, match=rf"access was refused \({status}\): check the cred"),
        ):
            bucket.objects()
    with (
        bucket_behind(whole(413, page)) as (bucket, _),
        pytest.raises(StateError, match=r"ListObjectsV2 failed \(413\): is the endpoint right"),
    ):
        bucket.objects()


def test_a_server_or_proxy_without_time_is_waited_for() -> None:
    away = [whole(status) for status in (307, 302, 408, 429, 503)]
    with bucket_behind(*away, whole(200, CONTENT)) as (bucket, _):
        assert bucket.read("x") == CONTENT


def test_only_the_server_says_that_an_object_is_missing() -> None:
    """Any other 404 was cut on its way, or comes from a proxy without a server."""
    missing = b"<Error><Code>NoSuchKey</Code></Error>"
    others = whole(404), (404, missing, 9), whole(404, b"<html>nothing here</html>")
    with bucket_behind(*others, whole(404, missing)) as (bucket, server):
        assert bucket.read("x") is None
        assert server.requests == 4


PAGE = b"<html>Welcome to the hotel</html>"


def test_a_page_of_something_else_is_no_answer() -> None:
    """It was an empty listing, an object that was written, and a manifest that "is none"."""
    listing = (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>exports/a</Key>"
        b"<Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        b"</ListBucketResult>"
    )
    for page in (PAGE, b"no <xml"):
        with bucket_behind(whole(200, page), whole(200, listing)) as (bucket, _):
            assert [held.name for held in bucket.objects()] == ["a"]
        answers = whole(200, page), whole(200), whole(200, CONTENT)
        with bucket_behind(*answers) as (bucket, server):
            bucket.put("x", b"x")
            assert bucket.read("x") == CONTENT
            assert server.requests == 3
    with (
        bucket_behind(whole(200, PAGE), patience=0) as (bucket, _),
        pytest.raises(StateError, match=r"no answer from the server \(NotFromS3Error\): is it"),
    ):
        bucket.put_new("x", b"x")
