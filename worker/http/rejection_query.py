"""How a request chooses rejections: filters, limits and cursors. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

import msgspec
from starlette.requests import Request

from schemas import ENTITIES
from worker.core.shown import shown
from worker.core.violations import Code
from worker.desk.choosing import moment_named
from worker.desk.queries import Filter
from worker.http import opaque
from worker.http.parameters import check_query, malformed

USUAL_PAGE: Final = 100
LARGEST_PAGE: Final = 1_000
FILTERS: Final = ("entity", "code", "field", "key", "producer", "partition", "since")
"""The filters of `buddy rejections list`."""

_CODES: Final = tuple(code.value for code in Code)
_LONGEST: Final = 1_000
"""Characters of a value."""
_SHOWN: Final = 40
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_IDENTITY: Final = re.compile(r"[0-9a-f]{1,64}")


class Cursor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in the list of rejections of one store, which numbers them as it reads them."""

    identity: str
    """Of the store: see `DeskDatabase.identity`."""
    number: int


def decode_cursor(text: str) -> Cursor | None:
    """The cursor in a text; None if there is none."""
    found = opaque.decode(text, Cursor)
    if found and _IDENTITY.fullmatch(found.identity) and 0 <= found.number < 2**63:
        return found
    return None


class ListQuery(NamedTuple):
    """What `GET /v1/rejections` asks for. `after` is the cursor of the page before."""

    chosen: Filter
    limit: int
    after: Cursor | None
    everything: bool
    """Whether settled rejections are listed as well."""


LISTING: Final = (*FILTERS, "all", "limit", "after")
"""What a list takes."""


def list_query(request: Request, now: int) -> ListQuery:
    """The query of a list. Raises Problem 400, which names the parameter."""
    return query_of(parameters(request, LISTING), now)


def query_of(values: Mapping[str, str], now: int) -> ListQuery:
    """The query of a list with these values. Raises Problem 400, which names the parameter."""
    limit = _whole(values, "limit", 1, LARGEST_PAGE)
    after = None
    if "after" in values:
        after = decode_cursor(values["after"])
        if after is None:
            raise malformed("after", "must be the 'next' of an earlier answer")
    return ListQuery(
        filter_of(values, now),
        USUAL_PAGE if limit is None else limit,
        after,
        _flag(values, "all"),
    )


def parameters(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query of a request. Raises Problem 400 for an unknown parameter, or one given twice."""
    check_query(request, known)
    values: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in values:
            raise malformed(name, "is given twice")
        values[name] = value
    return values


def filter_of(values: Mapping[str, Any], now: int) -> Filter:
    """The filter in these values: those of a query, or of a JSON body. Raises Problem 400."""
    text = {name: values.get(name) for name in FILTERS if name != "partition"}
    for name, value in text.items():
        if value is not None and len(value) > _LONGEST:
            raise malformed(name, f"has more than {_LONGEST} characters")
    _one_of("entity", text["entity"], tuple(ENTITIES))
    _one_of("code", text["code"], _CODES)
    if text["key"] is not None and text["entity"] is None:
        raise malformed("key", "alone names no record: give entity as well")
    since = text.pop("since")
    return Filter(
        **text,
        partition=_whole(values, "partition", 0, 999_999),
        since=None if since is None else _since(since, now),
    )


def _since(text: str, now: int) -> int:
    found = moment_named(text, now)
    if found is None:
        raise malformed(
            "since",
            "must be a time back from now (30m, 2h or 7d) or a moment in UTC (2026-11-29T11:53Z)",
        )
    return found


def _one_of(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is None or value in choices:
        return
    near = get_close_matches(value[:_SHOWN].lower(), choices, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(choices)}"
    raise malformed(name, f"has no value {shown(value, _SHOWN)}: {hint}")


def _whole(values: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = values.get(name)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value)
    if value is None or (isinstance(value, int) and least <= value <= most):
        return value
    raise malformed(name, f"must be a whole number from {least} to {most:,}")


def _flag(values: Mapping[str, str], name: str) -> bool:
    value = values.get(name, "false")
    if value not in ("true", "false"):
        raise malformed(name, "must be true or false")
    return value == "true"
