"""One request at a time is carried out, and what is said of it meanwhile and at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from worker.core.topics import Names
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    ConfigurationError,
    StateLost,
    UsageError,
)
from worker.sink.export import ExportSettings, carry_out, moment_of, published
from worker.sink.reports import Reports
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    Progress,
    Status,
    encode_announcement,
    export_id_of,
)
from worker.sink.selection.cut import Source
from worker.stream import ProducerRecord

_REPORT_SECONDS: Final = 1.0
_ALIVE_SECONDS: Final = 10.0
"""Whoever waits must see that a sink is there, also while it waits itself."""

_log = structlog.get_logger(__name__)


class Answer(NamedTuple):
    """The last answer to a request; `decided` if trying again would give no other."""

    said: Announcement
    decided: bool


class Answers:
    """Makes exports, and words the answers. It announces all but the last one of a request.

    The last one goes out with what says that the request is done, which is the caller's.
    """

    def __init__(self, source: Source, settings: ExportSettings, reports: Reports) -> None:
        self._source = source
        self._settings = settings
        self._reports = reports

    async def answer(self, request: ExportRequest, *, scheduled: bool = False) -> Answer:
        """Carry out a request, or a slot's: "finished" or "failed".

        Raises `BrokerUnavailable`, `ConfigurationError` where a login is refused meanwhile, and
        `StateLost` where the store is rebuilt: then nothing is known, and the request is to be
        taken up again.
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
            said = self.failure(request.id, str(error))
        except BuddyError as error:
            after_all = await self._published(request)
            decided = after_all is not None
            said = after_all or self.failure(request.id, str(error))
        except Exception as error:  # noqa: BLE001 -- one request never ends the sink
            _log.error("export_internal_error", request=request.id, kind=type(error).__name__)
            decided = False
            said = self.failure(request.id, f"internal error: {type(error).__name__}")
        if said.status == "finished":
            _report(request, said)
        self._reports.export(time.monotonic() - began, finished=said.status == "finished")
        return Answer(said, decided)

    async def expired(self, request: ExportRequest) -> Announcement:
        """The answer to one that is too old to be carried out: what it had led to, if anything."""
        error = "the request was more than an hour old when a sink came to it: ask again"
        return await self._published(request) or self.failure(request.id, error)

    async def _published(self, request: ExportRequest) -> Announcement | None:
        """What an attempt has published that failed behind its seal: only its end was not seen."""
        try:
            return await published(request, self._source, self._settings)
        except BuddyError:  # the place cannot be reached: the next attempt will find it
            return None

    def failure(self, request_id: str, error: str) -> Announcement:
        """The answer to a request that cannot be carried out."""
        _log.error("export_failed", request=request_id, error=error)
        return msgspec.structs.replace(self._words(request_id, "failed"), error=error)

    async def _carry_out(self, request: ExportRequest, *, scheduled: bool) -> Announcement:
        """With an announcement of progress once a second, or of its absence every ten.

        Of its absence nothing is said while the place's disk hangs.

        Its first stage is that the place of exports answers, which may be away.
        """
        latest = [Progress("place", 0, 1)]

        def report(stage: str, done: int, total: int) -> None:
            latest[:] = [Progress(stage, done, total)]

        reporting = asyncio.create_task(self._report(request.id, latest))
        try:
            return await carry_out(
                request, self._source, self._settings, report, scheduled=scheduled
            )
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})

    async def _report(self, request_id: str, latest: Sequence[Progress]) -> None:
        told: Progress | None = None
        spoke = time.monotonic()
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            # A thread that hangs is no sign of life: whoever waits runs into the time-out.
            alive = self._settings.place.hang() is None
            if latest[0] != told or (alive and time.monotonic() - spoke >= _ALIVE_SECONDS):
                told = latest[0]
                spoke = time.monotonic()
                words = self._words(request_id, "progress")
                try:
                    await self._announce(msgspec.structs.replace(words, progress=told))
                except BuddyError as error:  # the export itself is what matters
                    _log.warning("export_progress_not_announced", error=str(error))

    def _words(self, request_id: str, status: Status) -> Announcement:
        at = moment_of(self._source.clock())
        return Announcement(export_id_of(request_id), request_id, status, at)

    async def _announce(self, announcement: Announcement) -> None:
        await self._source.broker.publish([message_of(self._source.names, announcement)])


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
    """The message that announces it: in one partition, however many the topic was given."""
    key, value = encode_announcement(announcement)
    return ProducerRecord(names.exports, key, value, partition=0)
