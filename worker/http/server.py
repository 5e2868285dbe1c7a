"""Serves the application over HTTP/1.1 in the event loop of this process, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any, Final

import h11
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

HEADER_SECONDS: Final = 10.0
"""How long a client may take for the head of its first request."""
CLIENT_SECONDS: Final = 120.0
"""How long a client may take none of what waits for it. Its system may announce room only in steps
of 400 KB: within a minute, a client that reads 6 KB a second would seem to take nothing.
"""
KEEP_ALIVE_SECONDS: Final = 15
LINGER_SECONDS: Final = 3.0
"""How long the rest of a body is dropped that was answered before its end."""
GRACE_SECONDS: Final = 5
"""How long requests in progress may go on after a stop."""
_MOST_CONNECTIONS: Final = 2_000
_MOST_HEADER_BYTES: Final = 32 * 1024

_log = structlog.get_logger(__name__)


async def serve_http(
    app: ASGIApp, listening: socket.socket, stop: asyncio.Event, stalled: Callable[[], None]
) -> None:
    """Serve until `stop` is set; then give requests in progress `GRACE_SECONDS`.

    `stalled` is called for each client that is cut off because it takes nothing.
    """

    class Protocol(_Protocol):
        cut_off = staticmethod(stalled)

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = _Server(config)
    host, port = listening.getsockname()[:2]
    _log.info("http_started", host=host, port=port)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    server.should_exit = True
    await serving
    if cancelled := server.server_state.tasks:  # requests beyond the grace: they clean up
        await asyncio.wait(cancelled, timeout=GRACE_SECONDS)


class _Server(uvicorn.Server):
    """Leaves signals to the process, which stops all of its services by them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class _Protocol(H11Protocol):
    """Closes connections whose next request does not come: uvicorn limits only silence.

    A connection whose client still sends is not closed at once: the system would reset it, and the
    client would lose the answer.
    """

    cut_off: Callable[[], None]
    """Counts a client that is cut off because it takes nothing."""

    def connection_made(self, transport: Any) -> None:
        """Give the client `HEADER_SECONDS` for the head of its request."""
        closing: Any = _Closing(transport, self)
        super().connection_made(closing)
        self._linger_limit: asyncio.TimerHandle | None = None
        self._head_limit: asyncio.TimerHandle | None = None
        self._write_limit: asyncio.TimerHandle | None = None
        self._limit_head()

    def data_received(self, data: bytes) -> None:
        """Handle the data. Data that is no whole head does not extend the limit."""
        if self.lingers:
            return
        super().data_received(data)
        self._limit_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the limits."""
        for limit in (self._head_limit, self._write_limit, self._linger_limit):
            if limit is not None:
                limit.cancel()
        super().connection_lost(exc)

    @property
    def lingers(self) -> bool:
        """Whether all is answered, and what the client still sends is dropped."""
        return self._linger_limit is not None

    def close(self, transport: asyncio.Transport) -> None:
        """Close the connection, once the client has sent what it is sending, or has not in time."""
        cycle: RequestResponseCycle | None = self.cycle
        answered = cycle is not None and cycle.response_complete
        sends = answered and self.conn.their_state is h11.SEND_BODY
        if self.lingers or not sends or transport.is_closing():
            transport.close()
            return
        transport.write_eof()
        self.flow.resume_reading()
        self._linger_limit = self.loop.call_later(LINGER_SECONDS, transport.close)

    def pause_writing(self) -> None:
        """Give the client `CLIENT_SECONDS` to take some of what waits for it."""
        super().pause_writing()
        self._limit_writing(self._waiting())

    def resume_writing(self) -> None:
        """The system has taken most of it."""
        super().resume_writing()
        if self._write_limit is not None:
            self._write_limit.cancel()
            self._write_limit = None

    def _limit_writing(self, waiting: int) -> None:
        self._write_limit = self.loop.call_later(CLIENT_SECONDS, self._check_writing, waiting)

    def _check_writing(self, before: int) -> None:
        """Cut off a client that has taken nothing since the last check; a slow one goes on."""
        waiting = self._waiting()
        if waiting < before:
            self._limit_writing(waiting)
            return
        _log.warning("http_client_stalled", seconds=int(CLIENT_SECONDS), bytes=waiting)
        self.cut_off()
        self.transport.abort()

    def _waiting(self) -> int:
        """How many bytes the client has not taken: those in this process, and in the system.

        The system keeps megabytes for a slow client, and asks for more only once half is gone.
        """
        transport: Any = self.transport
        sent = array("i", [0])
        with suppress(OSError):  # a system that cannot tell, or a connection that is gone
            ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, sent)
        return int(transport.get_write_buffer_size()) + sent[0]

    def _limit_head(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._head_limit is not None:
                self._head_limit.cancel()
                self._head_limit = None
        elif self._head_limit is None:
            self._head_limit = self.loop.call_later(HEADER_SECONDS, self.transport.close)


class _Closing:
    """A transport that the protocol closes."""

    def __init__(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._protocol.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Close it, as the protocol does."""
        self._protocol.close(self._transport)
