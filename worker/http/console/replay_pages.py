"""Sending rejections again: what is chosen, a dry run, and then the replay itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.core.shown import shown
from worker.http.console.forms import read_form
from worker.http.console.pages import HEADERS, PageRenderer
from worker.http.console.texts import as_time, iso
from worker.http.parameters import caller_of, malformed
from worker.http.problems import Problem
from worker.http.rejection_query import FILTERS, parameters
from worker.http.rejections import now_ms
from worker.http.replays import ReplayRequest, ReplaySender, check_request

_CHOICES: Final = (*FILTERS, "coordinate")
_OPTIONS: Final = ("with_orphans", "at_once")


class ReplayPages:
    """The pages of replays. The choice is in the form, and nothing is kept between two pages."""

    def __init__(self, pages: PageRenderer, sender: ReplaySender) -> None:
        self._pages = pages
        self._sender = sender

    async def get(self, request: Request) -> Response:
        """The choice, before the dry run. Without a choice, the list where one is made."""
        given = parameters(request, _CHOICES)
        chosen = {name: value for name, value in given.items() if value}
        if not chosen:
            return RedirectResponse("/rejections", 303, HEADERS)
        replay_request(chosen, dry=True)
        return self._page(request, chosen, {})

    async def post(self, request: Request) -> Response:
        """The dry run, or the replay. A problem stands on the page: the choice stays."""
        form = await read_form(request)
        chosen = {name: form.get(name) for name in _CHOICES if form.get(name)}
        options = {name: True for name in _OPTIONS if form.get(name)}
        dry = form.get("step") != "send"
        report, problem = None, None
        asked = replay_request(chosen | options, dry=dry)
        began = now_ms()
        try:
            report = await self._sender.replay(asked, caller_of(request))
        except Problem as found:
            problem = found
        again = rejected_again(chosen, began, with_orphans="with_orphans" in options)
        return self._page(request, chosen, options, report=report, problem=problem, again=again)

    def _page(
        self,
        request: Request,
        chosen: dict[str, str],
        options: dict[str, bool],
        *,
        report: dict[str, Any] | None = None,
        problem: Problem | None = None,
        again: dict[str, str] | None = None,
    ) -> Response:
        coordinate = chosen.get("coordinate")
        back = f"/rejections?{urlencode(chosen)}" if coordinate is None else None
        return self._pages.page(
            request,
            "replay.html",
            status=200 if problem is None else problem.status,
            chosen=chosen,
            options=options,
            back=back,
            report=report,
            problem=problem,
            again=again,
        )


def rejected_again(chosen: Mapping[str, str], began: int, *, with_orphans: bool) -> dict[str, str]:
    """The filters of the list that show what was rejected since a replay began. Pure.

    Orphans may be of other entities than the record that has caused them.
    """
    entity = chosen.get("entity")
    if "coordinate" in chosen:
        entity = chosen["coordinate"].partition("/")[0].rpartition(".")[2]
    only = {} if entity is None or with_orphans else {"entity": entity}
    return only | {"since": iso(as_time(began))}


def replay_request(values: dict[str, Any], *, dry: bool) -> ReplayRequest:
    """The request in the fields of a form. Raises Problem 400. Pure."""
    fields = {name: value for name, value in values.items() if name != "coordinate"}
    if "coordinate" in values:
        fields["coordinates"] = [values["coordinate"]]
    try:
        asked = msgspec.convert(fields | {"dry_run": dry}, ReplayRequest, strict=False)
    except msgspec.ValidationError as error:
        raise malformed("form", f"cannot be read: {shown(str(error), 200)}") from None
    check_request(asked)
    return asked
