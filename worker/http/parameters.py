"""Parameters of requests that several endpoints share."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

from starlette.requests import Request

from schemas import ENTITIES
from worker.core.shown import shown
from worker.desk.seen import LONGEST_PRODUCER, PRODUCER_HEADER
from worker.http.access import ANYONE, Caller
from worker.http.body import CLIENT_SECONDS, is_json
from worker.http.problems import Problem
from worker.stream import Headers

LONGEST_WAIT: Final = 60.0
_SHOWN: Final = 40
_PRODUCER: Final = re.compile(rf"[ -~]{{1,{LONGEST_PRODUCER}}}")
_SECONDS: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s)?")


def entity_of(request: Request) -> str:
    """The entity in the path. Raises Problem 404."""
    entity: str = request.path_params["entity"]
    if entity in ENTITIES:
        return entity
    near = get_close_matches(entity[:40].lower(), ENTITIES, 1, 0.7)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(ENTITIES)}"
    raise Problem(404, "unknown_entity", f"no such entity: {hint}")


def caller_of(request: Request) -> Caller:
    """Who makes the request."""
    caller: Caller = request.state.caller
    return caller


def producer_of(request: Request) -> Headers:
    """The header of each record that names its producer: as the request does, or by its token.

    Raises Problem 400.
    """
    named = request.headers.getlist(PRODUCER_HEADER)
    if not named:
        caller = caller_of(request)
        return () if caller is ANYONE else ((PRODUCER_HEADER, caller.name.encode()),)
    if len(named) > 1 or not _PRODUCER.fullmatch(named[0]):
        raise Problem(
            400,
            "malformed_producer",
            f"{PRODUCER_HEADER} must be one string of 1 to {LONGEST_PRODUCER} printable ASCII"
            " characters",
        )
    return ((PRODUCER_HEADER, named[0].encode()),)


def number_of(request: Request, name: str, default: int, largest: int) -> int:
    """A positive whole number in the query. Raises Problem 400."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= largest):
        raise malformed(name, f"must be a number from 1 to {largest}")
    return int(text)


def check_query(request: Request, known: Collection[str]) -> None:
    """Raise Problem 400 for a parameter that does not exist, rather than ignore it in silence."""
    for name in request.query_params:
        if name not in known:
            near = get_close_matches(name[:_SHOWN].lower(), known, 1, 0.7)
            there = f"there are {', '.join(known)}" if known else "there are none here"
            hint = f"did you mean {near[0]}?" if near else there
            raise Problem(
                400,
                "unknown_parameter",
                f"no such parameter: {shown(name, _SHOWN)}: {hint}",
                members={"parameter": shown(name, _SHOWN)},
            )


def malformed(name: str, what: str) -> Problem:
    """The problem of a parameter whose value cannot be used."""
    return Problem(400, "malformed_parameter", f"{name} {what}", members={"parameter": name})


async def small_body(request: Request, most: int) -> bytes:
    """A JSON body of at most so many bytes. Raises Problem 408, 413, 415 and ClientDisconnect."""
    if not is_json(request):
        raise Problem(415, "unsupported_type", "the body must be application/json, uncompressed")
    return await read_small(request, most)


async def read_small(request: Request, most: int) -> bytes:
    """A body of at most so many bytes. Raises Problem 408, 413 and ClientDisconnect."""
    body = b""
    try:
        async with asyncio.timeout(CLIENT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise Problem(413, "body_too_large", f"the body may have {most:,} bytes")
    except TimeoutError:
        raise Problem(
            408, "body_too_slow", f"the body did not come within {CLIENT_SECONDS:.0f} s"
        ) from None
    return body


def wait_of(request: Request, longest: float = LONGEST_WAIT) -> float:
    """The seconds of `?wait=10s`; 0 if the client does not wait. Raises Problem 400."""
    text = request.query_params.get("wait", "0")
    match = _SECONDS.fullmatch(text)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else None
    if seconds is None or seconds > longest:
        raise Problem(
            400,
            "malformed_wait",
            f"wait must be a time such as 10s or 500ms, at most {longest:.0f}s",
        )
    return seconds
