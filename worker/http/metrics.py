"""Metrics of the API, by the rules of `worker.ops.metrics`. The process that serves has them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Histogram

from worker.ops.instruments import Instruments

OTHER: Final = "other"
"""In the place of an operation: the request was refused before it was routed, or has no path."""

_STATUSES: Final = ("2xx", "3xx", "4xx", "5xx")
_SECONDS: Final = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 600)
_TOO_MANY: Final = 429


class HttpMetrics:
    """What the API is asked for, and what it sends."""

    def __init__(self, make: Instruments, operations: Iterable[str]) -> None:
        """`operations` are their names."""
        names = (*operations, OTHER)
        requests = Counter(
            "buddy_http_requests",
            "Requests answered, by the first digit of the status.",
            ("operation", "status"),
            registry=make.registry,
        )
        self._requests = {
            (operation, status): requests.labels(operation, status)
            for operation in names
            for status in _STATUSES
        }
        seconds = Histogram(
            "buddy_http_request_duration_seconds",
            "Time to answer a request; of a stream of events, to its beginning.",
            ("operation",),
            registry=make.registry,
            buckets=_SECONDS,
        )
        self._seconds = {operation: seconds.labels(operation) for operation in names}
        self._refused = make.counter(
            "buddy_http_requests_refused", "Requests refused with 429: there were too many."
        )
        self._sent = make.by_entity(
            "buddy_http_records_sent", "Records sent to the inputs, deletions among them."
        )
        self._too_large = make.by_entity(
            "buddy_http_records_refused", "Records that were too large to be sent."
        )
        self._lost = make.counter(
            "buddy_http_lost_offsets",
            "Offsets of receipts or announcements that are lost: removed, or damaged and skipped,"
            " before the API read them, or gone with an earlier topic.",
        )
        self._stalled = make.counter(
            "buddy_http_clients_stalled",
            "Clients that were cut off in mid-answer, because they took nothing for two minutes.",
        )
        self._cut_off = make.counter(
            "buddy_http_answers_cut_off",
            "Answers that ended in the middle, because what they are read from failed.",
        )
        self._delivered = make.counter("buddy_http_export_bytes", "Bytes of exports sent.")
        self._streams = make.gauge("buddy_http_streams", "Streams of events that are open.")
        self._uploads = make.gauge("buddy_http_uploads", "Bodies of records that are being read.")

    def answered(self, operation: str, status: int) -> None:
        """Count a request by the status of its answer."""
        known = operation if operation in self._seconds else OTHER
        self._requests[known, f"{status // 100}xx"].inc()
        if status == _TOO_MANY:
            self._refused.inc()

    def took(self, operation: str, seconds: float) -> None:
        """Observe how long a request was in progress."""
        self._seconds.get(operation, self._seconds[OTHER]).observe(seconds)

    def records(self, entity: str, sent: int, refused: int) -> None:
        """Count the records of a request, and those that were too large to be sent."""
        self._sent[entity].inc(sent)
        self._too_large[entity].inc(refused)

    def lost(self, offsets: int) -> None:
        """Count offsets of followed topics that were gone before they were read."""
        self._lost.inc(offsets)

    def stalled(self) -> None:
        """Count a client that was cut off because it took nothing of its answer."""
        self._stalled.inc()

    def cut_off(self) -> None:
        """Count an answer that ended in the middle, because what it is read from failed."""
        self._cut_off.inc()

    def delivered(self, size: int) -> None:
        """Count bytes of an export that were sent."""
        self._delivered.inc(size)

    def streams(self, number: int) -> None:
        """Set how many streams of events are open."""
        self._streams.set(number)

    def uploads(self, number: int) -> None:
        """Set how many bodies of records are being read."""
        self._uploads.set(number)
