"""The forms of the console: their bodies, and the proof that one of our pages sent them."""

from __future__ import annotations

from hmac import compare_digest
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from worker.http.parameters import read_small
from worker.http.problems import Problem
from worker.http.sessions import form_key

_LARGEST: Final = 16 * 1024
_MOST_FIELDS: Final = 100
_KIND: Final = "application/x-www-form-urlencoded"


class Form:
    """The fields of a form."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str:
        """The last value of a field; empty if the form has none."""
        return next((value for key, value in reversed(self._fields) if key == name), "")

    def all(self, name: str) -> tuple[str, ...]:
        """All values of a field."""
        return tuple(value for key, value in self._fields if key == name)


async def read_form(request: Request) -> Form:
    """The form in a request. Raises Problem 403 unless a page of ours has sent it; 400, 408, 413.

    A browser says where a form comes from, and `worker.http.guard` refuses other origins. Here
    saying nothing is refused as well. With a cookie, the form must have the key that follows from
    it.
    """
    if "origin" not in request.headers:
        raise Problem(403, "other_origin", "only a page of the console may send this form")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _KIND:
        raise Problem(415, "unsupported_type", f"the body must be {_KIND}")
    body = await read_small(request, _LARGEST)
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Problem(400, "malformed_body", "the form cannot be read") from None
    form = Form(fields)
    if not compare_digest(form.get("form_key").encode(), form_key(request).encode()):
        raise Problem(403, "other_origin", "the form is of another session: open its page again")
    return form
