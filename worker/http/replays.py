"""`POST /v1/replays`: sends rejected records to their inputs again.

The request names rejections by filters or by coordinates. It ends when all are sent, or after
`MOST_SECONDS`: each rejection is sent once, so the same request again sends the rest.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec
import structlog
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from worker.brokers.contract import Broker
from worker.core.rejection import timestamp
from worker.core.shown import shown
from worker.desk.audit import MOST_REPLAYS
from worker.desk.choosing import read_coordinate
from worker.desk.queries import Filter
from worker.desk.replay import ReplayRun
from worker.desk.replayer import Replayer, ReplayPlan
from worker.errors import BuddyError, NoAnswer, NobodyWorks, UsageError
from worker.http.access import Caller
from worker.http.broker_watch import BrokerWatch
from worker.http.desk_reader import DeskReader, behind
from worker.http.parameters import caller_of, malformed, small_body
from worker.http.problems import Problem, problem_of
from worker.http.rejection_query import FILTERS, filter_of, parameters
from worker.http.rejections import now_ms

LARGEST_BODY: Final = 64 * 1024
MOST_SECONDS: Final = 300.0
"""After so long, a request sends no further page."""
JUDGED_SECONDS: Final = 60.0
"""How long records that were sent before may take to get their verdicts."""

UntilJudged = Callable[[Broker, int, float], Awaitable[None]]
"""Waits until all records in the inputs have their verdicts: given a broker, the number of
partitions of each input, and seconds. Raises NobodyWorks."""

_log = structlog.get_logger(__name__)


class ReplayRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to send again: rejections at coordinates, or those that all filters choose."""

    coordinates: Annotated[tuple[str, ...], Meta(max_length=1_000)] = ()
    entity: str | None = None
    code: str | None = None
    field: str | None = None
    key: str | None = None
    producer: str | None = None
    partition: int | None = None
    since: str | None = None
    dry_run: bool = False
    with_orphans: bool = False
    force: bool = False
    max_replays: Annotated[int, Meta(ge=1, le=99_999)] = MOST_REPLAYS
    at_once: bool = False
    """Whether not to wait for the verdicts of what is in the inputs."""


_decode = msgspec.json.Decoder(ReplayRequest).decode


class ReplaySender:
    """The endpoint that sends again, one request at a time."""

    def __init__(self, desk: DeskReader, until_judged: UntilJudged, watch: BrokerWatch) -> None:
        """`watch` hears whether the broker lets records be sent again."""
        self._desk = desk
        self._watch = watch
        self._until_judged = until_judged
        self._busy = False

    async def post(self, request: Request) -> Response:
        """Send the chosen rejections again, or with `dry_run` say what would be sent. 200."""
        parameters(request, ())
        asked = read_request(await small_body(request, LARGEST_BODY))
        report = await self.replay(asked, caller_of(request))
        return Response(msgspec.json.encode(report), media_type="application/json")

    async def replay(self, asked: ReplayRequest, caller: Caller) -> dict[str, Any]:
        """Carry a checked request out, and report it. Raises Problem."""
        now = now_ms()
        plan = ReplayPlan(
            filter_of(_filters(asked), now) if not asked.coordinates else Filter(),
            tuple(self._coordinate(text) for text in asked.coordinates),
            dry=asked.dry_run,
            with_orphans=asked.with_orphans,
            seconds=MOST_SECONDS,
        )
        this_run = ReplayRun(
            replay=str(uuid.uuid4()),
            at=timestamp(now),
            by=shown(caller.name, 64),
            partitions=0,
            most=asked.max_replays,
            forced=asked.force,
        )
        if self._busy:
            raise Problem(
                409,
                "replay_running",
                "another replay is running here: try again when it has ended",
                headers={"Retry-After": "5"},
            )
        self._busy = True
        try:
            replayer = Replayer(self._desk.access, this_run, plan)
            await self._send(replayer, caller.name, at_once=asked.at_once)
        finally:
            self._busy = False
        return replayer.report() | {"complete": replayer.complete}

    async def _send(self, replayer: Replayer, caller: str, *, at_once: bool) -> None:
        broker, dry = self._desk.broker, replayer.plan.dry
        try:
            await replayer.prepare(broker)
            if not dry and not at_once:
                await self._until_judged(broker, replayer.this_run.partitions, JUDGED_SECONDS)
            await replayer.send(broker)
            self._watch.sent(self._desk.names.replays)
        except NobodyWorks:
            raise Problem(
                503,
                "not_judged",
                f"records in the inputs have no verdict after {JUDGED_SECONDS:.0f} s, and newer"
                " versions may be among them: try again, or set at_once",
                headers={"Retry-After": "5"},
            ) from None
        except NoAnswer:
            problem = behind()
            problem.members |= _sent(replayer)
            raise problem from None
        except UsageError as error:  # only a coordinate can be wrong here
            raise Problem(404, "no_rejection", str(error), members=_sent(replayer)) from None
        except BuddyError as error:
            self._watch.failed(self._desk.names.replays, error)
            raise problem_of(error, _sent(replayer)) from None
        finally:
            if replayer.sent and not dry:
                _log.info(
                    "records_replayed",
                    caller=caller,
                    replay=replayer.this_run.replay,
                    count=replayer.sent,
                )

    def _coordinate(self, text: str) -> str:
        try:
            return read_coordinate(self._desk.names, text)
        except UsageError:
            raise malformed(
                "coordinates",
                "must be TOPIC/PARTITION/OFFSET each, of an input or of a topic of rejections"
                f" with prefix {self._desk.names.prefix}, such as in.users/3/17",
            ) from None


def read_request(body: bytes) -> ReplayRequest:
    """The request in a body. Raises Problem 400. Pure."""
    try:
        asked = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "malformed_body", f"body: {shown(str(error), 200)}") from None
    check_request(asked)
    return asked


def check_request(asked: ReplayRequest) -> None:
    """Raise Problem 400 unless the request chooses something in one way."""
    chooses = any(getattr(asked, name) is not None for name in FILTERS)
    if not asked.coordinates and not chooses:
        raise Problem(
            400,
            "nothing_chosen",
            "say what to send again: coordinates, or filters such as code or since",
        )
    if asked.coordinates and (asked.with_orphans or chooses):
        raise malformed("coordinates", "go alone, without filters and with_orphans")


def _filters(asked: ReplayRequest) -> dict[str, str | int | None]:
    return {name: getattr(asked, name) for name in FILTERS}


def _sent(replayer: Replayer) -> dict[str, object]:
    """What was sent before an error, as a member of its problem details."""
    return {"sent": 0 if replayer.plan.dry else replayer.sent}
