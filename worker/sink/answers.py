"""Carries out one request at a time, announces its progress, and words its last answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from worker.brokers.contract import Committer
from worker.core.topics import Names
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    ConfigurationError,
    Fenced,
    StateLost,
    UsageError,
)
from worker.sink.export import carry_out, published
from worker.sink.export_settings import ExportSettings
from worker.sink.reports import SinkReports
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    Progress,
    Status,
    encode_announcement,
    export_id_of,
)
from worker.sink.selection.cut import CutSource
from worker.sink.selection.plan import moment_of
from worker.stream import ProducerRecord
from worker.waiting import wait

_REPORT_SECONDS: Final = 1.0
_ALIVE_SECONDS: Final = 10.0
"""How often unchanged progress is repeated: a client must see a live sink even while it waits."""

_log = structlog.get_logger(__name__)


class Answer(NamedTuple):
    """The last answer to a request; `decided` if a retry would give the same answer."""

    said: Announcement
    decided: bool


class Answers:
    """Makes exports, and words the answers. It publishes every answer but the last of a request.

    The caller publishes the last one, in one transaction with the mark that the request is done.
    Both use the leader's committer: once another sink leads, this one announces nothing.
    """

    def __init__(
        self,
        source: CutSource,
        committer: Committer,
        settings: ExportSettings,
        reports: SinkReports,
    ) -> None:
        self._source = source
        self._committer = committer
        self._settings = settings
        self._reports = reports

    async def answer(self, request: ExportRequest, *, scheduled: bool = False) -> Answer:
        """Carry out a request, or that of a slot; return its last answer: "finished" or "failed".

        Raises `Fenced` before it begins if another sink leads. Raises `BrokerUnavailable`,
        `ConfigurationError` if a login is refused meanwhile, and `StateLost` if the store is
        rebuilt. The outcome is then unknown, and the request must be taken up again.
        """
        _log.info("export_started", request=request.id, entities=len(request.entities))
        began = time.monotonic()
        await self._announce(self._words(request.id, "started"))
        decided = True
        try:
            said = await self._carry_out(request, scheduled=scheduled)
        except (BrokerUnavailable, ConfigurationError, StateLost):
            raise
        except UsageError as error:
            said = self.fail(request.id, str(error))
        except BuddyError as error:
            after_all = await self._published(request)
            decided = after_all is not None
            said = after_all or self.fail(request.id, str(error))
        except Exception as error:  # noqa: BLE001 -- one request never ends the sink
            _log.error("export_internal_error", request=request.id, kind=type(error).__name__)
            decided = False
            said = self.fail(request.id, f"internal error: {type(error).__name__}")
        if said.status == "finished":
            _report(request, said)
        self._reports.export(time.monotonic() - began, finished=said.status == "finished")
        return Answer(said, decided)

    async def answer_expired(self, request: ExportRequest) -> Announcement:
        """The answer to a request that is too old: the export if it was made, else a failure."""
        error = "the request was more than an hour old when a sink came to it: ask again"
        return await self._published(request) or self.fail(request.id, error)

    async def _published(self, request: ExportRequest) -> Announcement | None:
        """The export if a failed attempt published it: after the seal, only the outcome is lost."""
        try:
            return await published(request, self._source, self._settings)
        except BuddyError:  # the place is unreachable: the next attempt finds the export
            return None

    def fail(self, request_id: str, error: str) -> Announcement:
        """Log that a request cannot be carried out, and word the answer."""
        _log.error("export_failed", request=request_id, error=error)
        return msgspec.structs.replace(self._words(request_id, "failed"), error=error)

    async def _carry_out(self, request: ExportRequest, *, scheduled: bool) -> Announcement:
        """Make the export; announce new progress once a second, unchanged every ten seconds.

        While the disk of the export place hangs, unchanged progress is not announced. The first
        stage, "place", is a wait for the export place to answer, since it may be unreachable.
        """
        latest = [Progress("place", 0, 1)]

        def report(stage: str, done: int, total: int) -> None:
            latest[:] = [Progress(stage, done, total)]

        over = asyncio.Event()
        reporting = asyncio.create_task(self._report(request.id, latest, over))
        try:
            return await carry_out(
                request, self._source, self._settings, report, scheduled=scheduled
            )
        except asyncio.CancelledError:
            reporting.cancel()  # the sink stops and commits no more
            raise
        finally:
            # Cancelling in the middle of a commit would lose the committer, and the last answer.
            over.set()
            await asyncio.wait({reporting})

    async def _report(
        self, request_id: str, latest: Sequence[Progress], over: asyncio.Event
    ) -> None:
        told: Progress | None = None
        spoke = time.monotonic()
        while True:
            await wait(over, _REPORT_SECONDS)
            if over.is_set():
                return
            # A hung thread is no sign of life: let the waiting client run into its time-out.
            alive = self._settings.place.hang() is None
            if latest[0] != told or (alive and time.monotonic() - spoke >= _ALIVE_SECONDS):
                told = latest[0]
                spoke = time.monotonic()
                words = self._words(request_id, "progress")
                try:
                    await self._announce(msgspec.structs.replace(words, progress=told))
                except BuddyError as error:  # only the export itself matters
                    _log.warning("export_progress_not_announced", error=str(error))
                    if isinstance(error, Fenced):  # so will be the rest
                        return

    def _words(self, request_id: str, status: Status) -> Announcement:
        at = moment_of(self._source.clock())
        return Announcement(export_id_of(request_id), request_id, status, at)

    async def _announce(self, announcement: Announcement) -> None:
        await self._committer.commit([message_of(self._source.names, announcement)], {})


def _report(request: ExportRequest, said: Announcement) -> None:
    _log.info(
        "export_finished", request=request.id, directory=said.directory, complete=said.complete
    )
    if said.full_because is not None:
        _log.warning(
            "export_full",
            request=request.id,
            bookmark=request.incremental,
            reason=said.full_because,
        )


def message_of(names: Names, announcement: Announcement) -> ProducerRecord:
    """The announcement's message, always in partition 0, however many the topic has."""
    key, value = encode_announcement(announcement)
    return ProducerRecord(names.exports, key, value, partition=0)
