"""The server itself: where it listens, and clients that never get to the point."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from unittest.mock import Mock, patch

import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from worker.errors import ConfigurationError
from worker.http.listening import is_loopback, listen
from worker.http.server import _Protocol, serve_http


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    """An application that answers everything."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a server that gives clients little time."""
    stop = asyncio.Event()
    with (
        patch("worker.http.server.HEADER_SECONDS", 0.2),
        listen("127.0.0.1", 0, has_tokens=False) as listening,
    ):
        serving = asyncio.create_task(serve_http(answer, listening, stop, Mock()))
        yield listening.getsockname()[1]
        stop.set()
        await serving


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
@pytest.mark.parametrize("served_before", [False, True])
async def test_a_head_that_never_ends_is_cut_off(
    port: int, head: bytes, served_before: bool
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if served_before:
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
        head = head or b"GET"
    writer.write(head)
    assert await reader.read() == b"", "closed, without an answer"
    writer.close()


async def test_a_head_that_is_too_long_is_refused(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000)
    assert (await reader.read()).startswith(b"HTTP/1.1 4")
    writer.close()


async def large(_scope: Scope, _receive: Receive, send: Send) -> None:
    """An application that answers with 100 MB."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1_000):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        await large(scope, receive, send)
        ended.set()

    stop, ended, stalled = asyncio.Event(), asyncio.Event(), Mock()
    with (
        capture_logs() as logs,
        patch("worker.http.server.CLIENT_SECONDS", 0.2),
        listen("127.0.0.1", 0, has_tokens=False) as listening,
    ):
        serving = asyncio.create_task(serve_http(watched, listening, stop, stalled))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listening.getsockname()[1], limit=1_000
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await ended.wait()  # the rest is dropped, once the connection is
        taken = 0
        with suppress(ConnectionResetError):
            while chunk := await reader.read(1_000_000):
                taken += len(chunk)
        assert taken < 100_000_000, "not all of it"
        writer.close()
        stop.set()
        await serving
    stalled.assert_called_once_with()
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
        "http_client_stalled"
    ]


async def test_a_client_that_takes_little_is_not_cut_off() -> None:
    stop, paused = asyncio.Event(), asyncio.Event()
    served: list[_Protocol] = []

    class Watched(_Protocol):
        def pause_writing(self) -> None:
            super().pause_writing()
            served.append(self)
            paused.set()

    with (
        patch("worker.http.server._Protocol", Watched),
        listen("127.0.0.1", 0, has_tokens=False) as listening,
    ):
        serving = asyncio.create_task(serve_http(large, listening, stop, Mock()))
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", listening.getsockname()[1], limit=1_000
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await paused.wait()
        protocol = served[0]
        before = protocol._waiting()
        while protocol._waiting() >= before:
            assert await reader.read(10_000)
        protocol._check_writing(before)
        assert not protocol.transport.is_closing(), "it has taken something since"
        protocol._check_writing(0)  # and nothing since
        assert protocol.transport.is_closing()
        writer.close()
        stop.set()
        await serving


async def sent(writer: asyncio.StreamWriter, megabytes: int, stated: int) -> None:
    """Send a body; the client asks that the connection be closed, as urllib does."""
    head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
    writer.write(head.format(stated).encode())
    for _ in range(megabytes):
        writer.write(bytes(1_000_000))
        await writer.drain()


async def test_an_answer_before_the_end_of_a_body_reaches_the_client(port: int) -> None:
    """The client sends all of it, and reads only then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await sent(writer, 32, 32_000_000)
    assert (await reader.read()).startswith(b"HTTP/1.1 204")
    writer.close()


async def test_a_body_that_never_ends_is_not_taken_for_ever(port: int) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    with patch("worker.http.server.LINGER_SECONDS", 0.2), pytest.raises(ConnectionError):
        await sent(writer, 10_000, 10**12)
    writer.close()


def test_others_are_served_with_tokens_only() -> None:
    with pytest.raises(ConfigurationError, match="http_tokens_file"):
        listen("0.0.0.0", 0, has_tokens=False)  # noqa: S104 -- this is refused
    with listen("0.0.0.0", 0, has_tokens=True) as listening:  # noqa: S104 -- for a moment
        assert listening.getsockname()[1] > 0


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} on 127\.0\.0\.1 is in use"):
            listen("127.0.0.1", port, has_tokens=False)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("", False),
        ("0.0.0.0", False),  # noqa: S104 -- a name to look at
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.1", False),
    ],
)
def test_which_hosts_are_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
