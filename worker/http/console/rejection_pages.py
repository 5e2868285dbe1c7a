"""The list of rejections, and one rejection with its original beside its violations."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from worker.desk.queries import RejectionListed, Summary
from worker.http import opaque
from worker.http.console.pages import PageRenderer
from worker.http.parameters import caller_of
from worker.http.problems import Problem
from worker.http.rejection_query import (
    FILTERS,
    LISTING,
    Cursor,
    filter_of,
    parameters,
    query_of,
)
from worker.http.rejections import RejectionViewer, now_ms

_PAGE: Final = "50"
_MOST_FIELDS: Final = 200


class FieldRow(NamedTuple):
    """A field of a record: its value as text, None if it is missing, and what is wrong with it."""

    name: str
    text: str | None
    violations: list[dict[str, Any]]


class RejectionPages:
    """The pages that show rejections."""

    def __init__(self, pages: PageRenderer, viewer: RejectionViewer) -> None:
        self._pages = pages
        self._viewer = viewer

    async def list(self, request: Request) -> Response:
        """A page of the list. A filter that cannot be used is named above it."""
        problem: Problem | None = None
        rejections: Sequence[RejectionListed] = ()
        counts: Summary | None = None
        older: str | None = None
        damage: Sequence[str] = ()
        values = dict(request.query_params)
        try:
            given = parameters(request, LISTING)
            values = {name: value for name, value in given.items() if value}
            rejections, older, damage = await self._page(values)
            counts = await self._viewer.counts(filter_of(values, now_ms()))
        except Problem as found:
            if "parameter" not in found.members and found.code != "stale_cursor":
                raise
            problem = found
        chosen = {name: values[name] for name in FILTERS if values.get(name)}
        return self._pages.page(
            request,
            "rejections.html",
            status=200 if problem is None else problem.status,
            values=values,
            chosen=chosen,
            query=urlencode(chosen),
            rejections=rejections,
            counts=counts,
            older=older,
            damage=damage,
            problem=problem,
        )

    async def _page(
        self, values: Mapping[str, str]
    ) -> tuple[Sequence[RejectionListed], str | None, Sequence[str]]:
        """The rejections, the query of the page behind them, and what damage hides."""
        query = query_of({"limit": _PAGE, **values}, now_ms())
        identity, page, damage = await self._viewer.page(query)
        older = None
        if page.more:
            cursor = opaque.encode(Cursor(identity, page.rejections[-1][0]))
            older = urlencode({**values, "after": cursor})
        return [one for _, one in page.rejections], older, damage

    async def get(self, request: Request) -> Response:
        """One rejection."""
        answer = await self._viewer.find(request)
        violations = msgspec.to_builtins(answer["violations"])
        record = record_of(answer)
        rows, others = beside(record, violations, masked=answer["masked"])
        return self._pages.page(
            request,
            "rejection.html",
            one=answer,
            rows=rows[:_MOST_FIELDS],
            omitted=max(0, len(rows) - _MOST_FIELDS),
            others=others,
            text=whole_text(answer, record),
            may_replay=answer["state"] == "open" and "operate" in caller_of(request).roles,
        )


def record_of(answer: Mapping[str, Any]) -> Any:
    """The original as JSON values; None if it is no JSON or is not there. Pure."""
    record = answer["record"]
    return msgspec.json.decode(record) if isinstance(record, msgspec.Raw) else record


def whole_text(answer: Mapping[str, Any], record: Any) -> str | None:
    """The original as one text, if it is no object with fields and may be seen. Pure."""
    if "record_base64" in answer:
        return b64decode(answer["record_base64"]).decode(errors="replace")
    is_one = answer["form"] == "json" and not isinstance(record, dict)
    return value_text(record, masked=answer["masked"]) if is_one else None


def beside(
    record: Any, violations: list[dict[str, Any]], *, masked: bool
) -> tuple[list[FieldRow], list[dict[str, Any]]]:
    """The fields of a record, each with its violations, and the violations of no field. Pure.

    Fields that a violation names and the record lacks come last. A record that is no object has no
    fields.
    """
    fields = record if isinstance(record, dict) else {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in fields}
    others = []
    for one in violations:
        path = one["field"]
        name = path if path in fields else re.split(r"[.\[]", path, maxsplit=1)[0]
        if name:
            found.setdefault(name, []).append(one)
        else:
            others.append(one)
    rows = [
        FieldRow(name, value_text(fields[name], masked=masked) if name in fields else None, wrong)
        for name, wrong in found.items()
    ]
    return rows, others


def value_text(value: Any, *, masked: bool) -> str:
    """A value as JSON; of a masked record the shape of the value. Pure."""
    if masked and isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()
