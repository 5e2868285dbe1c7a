"""The page of the exports: which entities an export holds, and its words for one."""

from __future__ import annotations

from html import unescape

from schemas import ENTITIES
from worker.exports.manifest import ExportedFile
from worker.http.access import ANYONE
from worker.http.console.export_pages import ExportRow
from worker.http.console.pages import PageRenderer


def page(entities: tuple[str, ...]) -> str:
    row = ExportRow(
        name="2026/x",
        date="2026-11-29T11:53:00Z",
        feed=None,
        full=True,
        complete=True,
        range="",
        bytes=1,
        rows=1,
        formats=("csv",),
        entities=entities,
        judged=1,
        left_out=1,
        counts={},
        files=(ExportedFile("users.csv", 1, 1, "0" * 64),),
    )
    text = PageRenderer().fragment(
        "exports.html",
        caller=ANYONE,
        path="/exports",
        form_key="",
        has_session=False,
        exports=[row],
        is_first=True,
        older=None,
        unreadable=[],
        requested=None,
        answer=None,
        formats=("csv",),
        scheme="http",
        host="localhost",
        takes_token=False,
    )
    return unescape(text)


def test_an_export_of_some_entities_names_them() -> None:
    text = page(("users", "matches"))
    assert "all rows of 2 entities" in text
    assert "<dt>Entities</dt><dd>users, matches</dd>" in text


def test_an_export_of_all_entities_needs_no_names() -> None:
    text = page(tuple(ENTITIES))
    assert ">all rows<" in text
    assert "<dt>Entities</dt>" not in text


def test_one_of_each_has_words_of_its_own() -> None:
    text = page(("users",))
    for words in ("all rows of 1 entity<", "1 file<", "1 row<", "1 judged record<"):
        assert words in text
