"""Retries calls for minutes while a server is away, and reports the outage.

botocore's own retry modes do not fit. Five tries take half a second, and after an outage a client
has no retries left: only successes refill its quota. So a client tries each call once, and
`Persistent` retries with a fresh client each time; threads that fail with one client share its
successor. Time is measured on a monotonic clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_when_event_set,
    wait_exponential_jitter,
)

PATIENCE_SECONDS: Final = 300.0
"""How long a call is retried."""
FIRST_PAUSE: Final = 0.25
LAST_PAUSE: Final = 15.0


class _Closing(Protocol):
    def close(self) -> None: ...


Client = TypeVar("Client", bound=_Closing)
T = TypeVar("T")
Tell = Callable[[str | None], object]
"""Called with one line when the place is away, and with None when it is back; from any thread."""

_log = structlog.get_logger(__name__)


def ignore_outages(_: str | None) -> None:
    """Tell nobody."""


class Persistent(Generic[Client]):
    """A client that is replaced before each retry. Thread-safe."""

    def __init__(
        self,
        connect: Callable[[], Client],
        is_outage: Callable[[BaseException], bool],
        words: Callable[[Any], str],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """`words` describes an error that `is_outage`, in one line for people."""
        self.tell: Tell = ignore_outages
        self._connect = connect
        self._client: Client | None = connect()
        self._is_outage = is_outage
        self._words = words
        self._patience = patience
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._away_since: float | None = None

    def call(self, function: Callable[[Client], T], patience: float | None = None) -> T:
        """Call `function`, with retries during an outage, and return its result.

        Raises the last error: an outage after `patience` seconds, by default those of this object,
        or once `close` was called; any other error at once.
        """
        tries = Retrying(
            retry=retry_if_exception(self._is_outage),
            wait=wait_exponential_jitter(
                multiplier=FIRST_PAUSE, max=LAST_PAUSE, jitter=FIRST_PAUSE
            ),
            stop=stop_after_delay(self._patience if patience is None else patience)
            | stop_when_event_set(self._closed),
            sleep=sleep_using_event(self._closed),
            after=self._away,
            before_sleep=self._waits,
            reraise=True,
        )
        result: T = tries(self.call_once, function)
        return result

    def call_once(self, function: Callable[[Client], T]) -> T:
        """As `call`, without retries: for clean-up, which can be done later."""
        with self._turn:
            client = self._client = self._client or self._connect()
        try:
            result = function(client)
        except Exception as error:
            if self._is_outage(error):
                self._replace(client)
            else:
                self._back()  # any answer ends the outage
            raise
        self._back()
        return result

    def renew(self) -> None:
        """Make the next call use a fresh client, with the credentials current by then."""
        self._replace(self._client)

    def _replace(self, client: Client | None) -> None:
        """Drop that client, unless another thread has dropped it already."""
        with self._turn:
            if client is None or self._client is not client:
                return
            self._client = None
        client.close()  # only idle connections: another thread may be using it

    def close(self) -> None:
        """Stop retrying: a call that waits for its next try gives up."""
        self._closed.set()
        self.renew()

    def _away(self, state: RetryCallState) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
        self.tell(self._line(state))

    def _waits(self, state: RetryCallState) -> None:
        _log.warning(
            "export_place_away", error=self._line(state), retry_in=round(state.upcoming_sleep, 1)
        )

    def _line(self, state: RetryCallState) -> str:
        assert state.outcome is not None
        return self._words(state.outcome.exception())

    def _back(self) -> None:
        since, self._away_since = self._away_since, None
        if since is not None:
            _log.info("export_place_back", seconds=round(time.monotonic() - since, 1))
            self.tell(None)
