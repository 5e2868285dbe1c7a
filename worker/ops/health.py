"""Health over HTTP: `/live`, `/ready` and `/metrics`, in threads beside the event loop.

The answers show the last reports of the services, so they come even while a service hangs: that is
the purpose of `/live`. The cost of clients is bounded: concurrent connections, time and size of a
request. No answer contains personal data.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import ErrorStream, StartResponse, WSGIEnvironment

import msgspec
import structlog
from prometheus_client import make_wsgi_app

from worker.errors import ConfigurationError
from worker.ops.metrics import Metrics

_MOST_CONNECTIONS: Final = 16
_DEADLINE_SECONDS: Final = 10.0
"""Longest life of a connection, from accept to close, however slow the client is."""
_POLL_SECONDS: Final = 0.1
_SHOWN_MS: Final = 600_000

_PLAIN: Final = "text/plain; charset=utf-8"
_OK: Final = "200 OK"
_UNAVAILABLE: Final = "503 Service Unavailable"

_log = structlog.get_logger(__name__)


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits beyond which a process is not alive or not ready. `ready_lag` is in records."""

    stall_seconds: float = 60.0
    ready_lag: int = 100_000


class Readiness(msgspec.Struct, frozen=True):
    """The answer of `/ready`. Each reason begins with the name of its service."""

    ready: bool
    reasons: list[str]
    expired: int
    """Records and messages that were gone before they were read, since the start."""


class ServiceHealth:
    """The health of one service, by its own last reports. Times are monotonic milliseconds."""

    def __init__(self, name: str, limits: HealthLimits, now: int) -> None:
        self.lost = 0
        self._name = name
        self._limits = limits
        self._last_progress = now
        self._restored = False
        self._assigned = self._running = 0
        self._lag = 0
        self._lost_at: int | None = None
        self._reported: dict[str, int] = {}
        self._hindrances: dict[str, tuple[str, int]] = {}

    def alive(self, now: int) -> None:
        """Report progress: a commit, a round with nothing to commit, a step of restoring."""
        self._last_progress = now

    def restoring(self) -> None:
        """Report that restoring begins, or begins again: not ready until `restored`."""
        self._restored = False

    def restored(self) -> None:
        """Report that the state the service needs is there: the index, the store."""
        self._restored = True

    def tasks(self, assigned: int, running: int) -> None:
        """Report how many tasks the service should run, and how many of them run."""
        self._assigned, self._running = assigned, running

    def lag(self, records: int) -> None:
        """Report how many records are still to be read."""
        self._lag = records

    def expired(self, records: int, now: int) -> None:
        """Report records that were gone before they were read.

        Not ready for ten minutes, so that somebody notices.
        """
        self.lost += records
        self._lost_at = now

    def recreated(self, topic: str, now: int) -> None:
        """Report that a topic was created anew."""
        self.report(f"topic {topic} was created anew: read from its start", now)

    def report(self, reason: str, now: int) -> None:
        """Report an event. Not ready for ten minutes, so that somebody notices."""
        # Replaced, not mutated: another thread may be reading.
        self._reported = {**self._reported, reason: now}

    def hindered(self, what: str, reason: str, now: int) -> None:
        """Report that a part of the work (`what`) is blocked: not ready until `free`.

        `reason` is one line that names the operation and the resource.
        """
        _, since = self._hindrances.get(what, (reason, now))
        # Replaced, not mutated: another thread may be reading.
        self._hindrances = {**self._hindrances, what: (reason, since)}

    def free(self, what: str) -> None:
        """Report that this part of the work goes on, or is no longer this service's."""
        if what in self._hindrances:
            self._hindrances = {w: r for w, r in self._hindrances.items() if w != what}

    def stalled(self, now: int) -> str | None:
        """Why the service is not alive, in one line; None if it is."""
        seconds = (now - self._last_progress) / 1000
        if seconds < self._limits.stall_seconds:
            return None
        return f"{self._name}: nothing was finished for {seconds:.0f} s"

    def reasons(self, now: int) -> list[str]:
        """Why the service is not ready, a line each; empty if it is."""
        found = []
        stalled = self.stalled(now)
        if stalled is not None:
            found.append(stalled)
        if not self._restored:
            found.append(f"{self._name}: not restored yet")
        if self._running < self._assigned:
            found.append(
                f"{self._name}: {self._running} of {self._assigned} assigned tasks are running"
            )
        if self._lag >= self._limits.ready_lag:
            found.append(
                f"{self._name}: {self._lag} records are to be read, the limit is "
                f"{self._limits.ready_lag}"
            )
        if self._lost_at is not None and now - self._lost_at < _SHOWN_MS:
            found.append(f"{self._name}: {self.lost} records were gone before they were read")
        for reason, at in self._reported.items():
            if now - at < _SHOWN_MS:
                found.append(f"{self._name}: {reason}")
        for what, (reason, since) in self._hindrances.items():
            found.append(f"{self._name}: {what}: {reason} (for {(now - since) // 1000} s)")
        return found


class Health:
    """Serves the health of a process and its metrics, from `start` to `close`.

    `clock` is monotonic, in milliseconds. Port 0 takes a free port; `port` tells which.
    """

    def __init__(
        self,
        metrics: Metrics,
        clock: Callable[[], int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        limits: HealthLimits | None = None,
    ) -> None:
        self._clock = clock
        self._host = host
        self._port = port
        self._limits = limits or HealthLimits()
        self._parts: list[ServiceHealth] = []
        self._metrics = make_wsgi_app(metrics.registry)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def part(self, name: str) -> ServiceHealth:
        """Add a service. From now on it, too, must be alive and ready."""
        part = ServiceHealth(name, self._limits, self._clock())
        self._parts.append(part)
        return part

    def stalled(self) -> str | None:
        """Why the process is not alive, in one line; None if it is."""
        now = self._clock()
        return "; ".join(line for part in self._parts if (line := part.stalled(now))) or None

    def readiness(self) -> Readiness:
        """Whether the process is ready, and why not."""
        now = self._clock()
        reasons = [reason for part in self._parts for reason in part.reasons(now)]
        return Readiness(not reasons, reasons, sum(part.lost for part in self._parts))

    @property
    def port(self) -> int:
        """The port of the server, once started."""
        assert self._server is not None
        return self._server.server_port

    @property
    def address(self) -> str:
        """Where this machine reaches the server, as `host:port`, once started."""
        assert self._server is not None
        host = ip_address(str(self._server.server_address[0]).partition("%")[0])
        if host.is_unspecified:  # it listens on all addresses
            host = ip_address("127.0.0.1" if host.version == 4 else "::1")
        return f"{host}:{self.port}" if host.version == 4 else f"[{host}]:{self.port}"

    def start(self) -> None:
        """Listen. Raises ConfigurationError if host or port cannot be used."""
        self._server = _listen(self._host, self._port, self._serve)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="health", daemon=True
        )
        self._thread.start()
        _log.info("health_started", host=self._host, port=self.port)

    def close(self) -> None:
        """Stop listening and close all connections. Does nothing if never started."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_off(older_than=0.0)
            self._thread.join()
            self._server = self._thread = None

    # --- answers ------------------------------------------------------------------------------

    def _serve(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET":
            return _answer(start, "405 Method Not Allowed", "use GET", ("Allow", "GET"))
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start)
                return answer
            if path == "/live":
                return self._live(start)
            if path == "/ready":
                return self._ready(start)
        except Exception as error:  # noqa: BLE001 -- a bad request never ends the thread
            _log.error("health_failed", path=path, error=type(error).__name__)
            return _answer(start, "500 Internal Server Error", "failed, see the log")
        return _answer(start, "404 Not Found", "there are /live, /ready and /metrics")

    def _live(self, start: StartResponse) -> Iterable[bytes]:
        stalled = self.stalled()
        return _answer(start, _UNAVAILABLE if stalled else _OK, stalled or "alive")

    def _ready(self, start: StartResponse) -> Iterable[bytes]:
        found = self.readiness()
        kind = ("Content-Type", "application/json")
        status = _OK if found.ready else _UNAVAILABLE
        return _answer(start, status, msgspec.json.encode(found).decode(), kind)


def _answer(
    start: StartResponse, status: str, line: str, *headers: tuple[str, str]
) -> Iterable[bytes]:
    kinds = [] if any(name == "Content-Type" for name, _ in headers) else [("Content-Type", _PLAIN)]
    start(status, [*kinds, *headers])
    return [line.encode() + b"\n"]


# --- the server -------------------------------------------------------------------------------


class _RequestHandler(WSGIRequestHandler):
    """Logs nothing, and limits each wait for a client."""

    timeout = 5.0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- as in the base class
        """Do nothing: a probe comes every few seconds."""

    def get_stderr(self) -> ErrorStream:
        """Discard the tracebacks of clients that disconnected."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each connection; their number and their duration are bounded."""

    daemon_threads = True

    def __init__(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        self.address_family = family
        self._open: dict[socket.socket, float] = {}
        super().__init__(address, _RequestHandler)

    def server_bind(self) -> None:
        """Bind without a DNS lookup of this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection if too many are open."""
        if len(self._open) >= _MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and forget it."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that exceed the deadline."""
        self.cut_off(older_than=_DEADLINE_SECONDS)

    def cut_off(self, *, older_than: float) -> None:
        """Close connections that have been open for `older_than` seconds or longer."""
        now = time.monotonic()
        for connection, since in list(self._open.items()):
            if now - since >= older_than:
                with contextlib.suppress(OSError):  # already closed
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_connection: Any) -> None:
        """Log a client that disconnected, or sent something other than HTTP."""
        kind = sys.exc_info()[0]
        _log.debug("health_connection_failed", error=kind.__name__ if kind else "")


def _listen(
    host: str, port: int, app: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
) -> _Server:
    try:
        kind = socket.SOCK_STREAM
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        server = _Server(family, (str(address[0]), port))
    except OSError as error:
        raise ConfigurationError(_complaint(host, port, error)) from None
    server.set_app(app)
    return server


def _complaint(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use: set metrics_port (BUDDY_METRICS_PORT) to a free "
            "one, or to 0 for no metrics"
        )
    if error.errno == errno.EACCES:
        return (
            f"port {port} may not be listened on: set metrics_port (BUDDY_METRICS_PORT) to one "
            "above 1023, or to 0 for no metrics"
        )
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{host} is no address of this machine: set metrics_host (BUDDY_METRICS_HOST) to "
            "127.0.0.1, to 0.0.0.0 for all, or to one that it has"
        )
    text = os.strerror(error.errno) if error.errno else str(error)
    return (
        f"metrics cannot be served on {host}, port {port}: {text}: see metrics_host "
        "(BUDDY_METRICS_HOST) and metrics_port (BUDDY_METRICS_PORT)"
    )
