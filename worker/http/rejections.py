"""`GET /v1/rejections`: the list, the summary, and one rejection with its original."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from worker.core.rejection import Rejection
from worker.core.topics import Names
from worker.desk import queries
from worker.desk.answers import incident_answer, listed_answer, moment, summary_answer
from worker.desk.choosing import read_coordinate
from worker.desk.incidents import IncidentBook, IncidentReport
from worker.desk.lacking import lacking
from worker.desk.masking import Masked, masked
from worker.desk.originals import Original, read_message, read_original
from worker.desk.queries import Filter, RejectionListed, RejectionPage, Summary
from worker.desk.store import RejectionStore
from worker.errors import UsageError
from worker.http import opaque
from worker.http.access import Caller
from worker.http.desk_reader import ANSWER_SECONDS, DeskReader
from worker.http.parameters import malformed
from worker.http.problems import Problem
from worker.http.rejection_query import (
    FILTERS,
    Cursor,
    ListQuery,
    filter_of,
    list_query,
    parameters,
)

MOST_INCIDENTS: Final = 100
"""The incidents that a summary lists, the newest."""
_NO_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class RejectionViewer:
    """The endpoints that show rejections."""

    def __init__(self, desk: DeskReader, *, show_values: bool) -> None:
        """With `show_values`, callers who may operate see the values of records."""
        self._desk = desk
        self._show_values = show_values

    async def list(self, request: Request) -> Response:
        """A page of the list, the newest first."""
        identity, page, damage = await self.page(list_query(request, now_ms()))
        following = None
        if page.more:
            following = opaque.encode(Cursor(identity, page.rejections[-1][0]))
        return _json(
            {
                "rejections": [listed_answer(one) for _, one in page.rejections],
                "next": following,
                "damage": damage,
            }
        )

    async def page(self, query: ListQuery) -> tuple[str, RejectionPage, Sequence[str]]:
        """A page of the list, the identity of its store, and what damage hides, in lines.

        Raises Problem 410 and 503.
        """

        def ask(store: RejectionStore) -> tuple[str, RejectionPage, Sequence[str]]:
            identity = store.database.identity
            if query.after is not None and query.after.identity != identity:
                raise Problem(
                    410,
                    "stale_cursor",
                    "the store was made anew, or is another process's: begin at the first page",
                )
            before = None if query.after is None else query.after.number
            page = queries.page(
                store, query.chosen, query.limit, before, everything=query.everything
            )
            return identity, page, lacking(store)

        return await self._desk.ask(ask)

    async def counts(self, chosen: Filter) -> Summary:
        """How many rejections a filter chooses, by kind. Raises Problem 503."""
        return await self._desk.ask(lambda store: queries.summary(store, chosen))

    async def summary(self, request: Request) -> Response:
        """The counts by entity, code and field, the incidents, and what damage hides."""
        chosen = filter_of(parameters(request, FILTERS), now_ms())

        def ask(
            store: RejectionStore,
        ) -> tuple[Summary, dict[str, dict[str, int]], list[IncidentReport], list[str]]:
            found = queries.summary(store, chosen)
            unknown = queries.unknown_fields(store, chosen.entity)
            return found, unknown, IncidentBook(store).reports(), lacking(store)

        found, unknown, incidents, damage = await self._desk.ask(ask)
        shown = [one for one in incidents if chosen.entity in (None, one.entity)]
        return _json(
            {
                **summary_answer(found, unknown),
                "incidents": [incident_answer(one) for one in shown[:MOST_INCIDENTS]],
                "damage": damage,
            }
        )

    async def get(self, request: Request) -> Response:
        """One rejection, by the coordinate of its record or its own."""
        return _json(await self.find(request))

    async def find(self, request: Request) -> dict[str, Any]:
        """What is known of the rejection in the path, for this caller. Raises Problem."""
        parameters(request, ())
        asked = coordinate_of(request.path_params, self._desk.names)
        listed = await self._desk.ask(lambda store: queries.at_coordinate(store, asked))
        message = None
        if listed is not None:
            message = await read_message(self._desk.broker, listed.coordinate, ANSWER_SECONDS)
        if listed is None or message is None:
            raise Problem(404, "no_rejection", f"there is no rejection at {asked}, or no longer")
        caller: Caller = request.state.caller
        shows = self._show_values and "operate" in caller.roles
        return rejection_answer(listed, read_original(message), masks=not shows)


def coordinate_of(path: Mapping[str, str], names: Names) -> str:
    """The coordinate in a path, with the prefix. Raises Problem 400."""
    try:
        return read_coordinate(names, f"{path['topic']}/{path['partition']}/{path['offset']}")
    except UsageError:
        raise malformed(
            "coordinate",
            "must be TOPIC/PARTITION/OFFSET of an input or of a topic of rejections with prefix"
            f" {names.prefix}, such as in.users/3/17",
        ) from None


def rejection_answer(
    listed: RejectionListed, found: Original | None, *, masks: bool
) -> dict[str, Any]:
    """One rejection as JSON. `found` is None if no worker wrote it. Pure."""
    answer: dict[str, Any] = {
        "coordinate": listed.coordinate,
        "source": listed.source,
        "at": moment(listed.at),
        "entity": listed.entity,
        "state": listed.state,
        "cause": listed.cause,
        "producer": listed.producer,
        "masked": masks,
    }
    if found is None:
        violations = [{"code": code, "field": field} for code, field in listed.violations]
        return answer | {"violations": violations, "form": "unreadable", "record": None}
    rejection = found.rejection
    return answer | {
        "key": rejection.key,
        "rejected_at": rejection.rejected_at,
        "replays": rejection.replays,
        "violations": rejection.violations,
        "violations_omitted": rejection.violations_omitted,
        **_record(rejection, found.value, masks=masks),
    }


def _record(rejection: Rejection, value: bytes | None, *, masks: bool) -> dict[str, Any]:
    """The original: its form, its size, and its values or their shapes."""
    if not isinstance(rejection.record_omitted, msgspec.UnsetType):
        return {"form": "omitted", "size": rejection.record_omitted.bytes, "record": None}
    if value is None:
        return {"form": "deletion", "size": 0, "record": None}
    try:
        content = msgspec.json.decode(value)
    except _NO_JSON:
        bytes_ = {} if masks else {"record_base64": b64encode(value).decode()}
        return {"form": "no_json", "size": len(value), "record": None, **bytes_}
    record = _texts(masked(content)) if masks else msgspec.Raw(value)
    return {"form": "json", "size": len(value), "record": record}


def _texts(value: Any) -> Any:
    """A masked record with the texts of its shapes."""
    if isinstance(value, dict):
        return {name: _texts(inner) for name, inner in value.items()}
    return value.text if isinstance(value, Masked) else value


def now_ms() -> int:
    """The time by the wall clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
