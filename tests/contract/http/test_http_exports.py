"""Exports over HTTP: lists, files, ranges, zips, requests and their events."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.broker_kit import Another, Clock
from tests.contract.http_kit import Served, problem, served
from tests.contract.sink_kit import Sink, fill
from worker.exports.places.directory import DirectoryPlace

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def clock() -> Clock:
    """The sink's, which stands."""
    return Clock()


@pytest.fixture
async def exporting(sink: Sink, another: Another) -> AsyncIterator[Served]:
    """The API beside a running sink with rows, and over its place."""
    await fill(sink)
    place = DirectoryPlace(sink.exports)
    async with sink.running(), served(await another(), sink.names, place=place) as http:
        yield http


async def exported(http: Served, **options: Any) -> Any:
    """The announcement of an export that was asked for and waited for."""
    answer = await http.client.post("/v1/exports?wait=60s", json=options)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "finished"
    return answer.json()


async def test_an_export_is_asked_for_found_and_fetched(exporting: Served) -> None:
    client = exporting.client
    assert problem(await client.get("/v1/exports/latest")) == (404, "no_such_export")
    told = await exported(exporting, formats=["csv"], entities=["users"])
    (listed,) = (await client.get("/v1/exports")).json()["exports"]
    assert listed == (await client.get("/v1/exports/latest?format=csv&entity=users")).json()
    assert listed["id"] == told["id"]
    assert listed["location"] == told["location"] == f"/v1/exports/{told['directory']}"
    manifest = await client.get(listed["location"])
    assert hashlib.sha256(manifest.content).hexdigest() == listed["manifest_sha256"]
    for file in manifest.json()["files"]:
        answer = await client.get(f"{listed['location']}/files/{file['path']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        assert int(answer.headers["content-length"]) == file["bytes"]
    for query in ("format=xlsx", "entity=matches", "bookmark=weekly"):
        answer = await client.get(f"/v1/exports/latest?{query}")
        assert problem(answer) == (404, "no_such_export")


async def test_a_file_has_a_name_for_people(exporting: Served) -> None:
    told = await exported(exporting)
    names = {}
    for file in told["files"]:
        answer = await exporting.client.head(f"{told['location']}/files/{file['path']}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) == file["bytes"]
        names[file["path"]] = answer.headers["content-disposition"]
    day = told["directory"][:8]
    day = f"{day[:4]}-{day[4:6]}-{day[6:]}"
    base = f"buddy_export_{day}"
    assert names[f"{base}/users.csv"] == f'attachment; filename="buddy_users_{day}.csv"'
    assert names[f"{base}.xlsx"] == f'attachment; filename="{base}.xlsx"'


async def test_ranges_and_conditions_are_as_http_has_them(exporting: Served) -> None:
    told = await exported(exporting, formats=["json"])
    file = next(file for file in told["files"] if file["path"].endswith(".json"))
    path, etag, size = f"{told['location']}/files/{file['path']}", file["sha256"], file["bytes"]
    whole = (await exporting.client.get(path)).content

    async def get(**headers: str) -> tuple[int, bytes, str | None]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await exporting.client.get(path, headers=sent)
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert await get(range="bytes=5-9") == (206, whole[5:10], f"bytes 5-9/{size}")
    assert await get(range="bytes=7-") == (206, whole[7:], f"bytes 7-{size - 1}/{size}")
    assert await get(range="bytes=-3") == (206, whole[-3:], f"bytes {size - 3}-{size - 1}/{size}")
    assert await get(range=f"bytes=0-{10**17}") == (206, whole, f"bytes 0-{size - 1}/{size}")
    for ignored in ("bytes=9-5", "bytes=-", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b"):
        assert await get(range=ignored) == (200, whole, None)
    for beyond in (f"bytes={size}-", "bytes=-0"):
        answer = await exporting.client.get(path, headers={"range": beyond})
        assert problem(answer) == (416, "no_such_range")
        assert answer.headers["content-range"] == f"bytes */{size}"
    assert await get(range="bytes=5-9", if_range=f'"{etag}"') == (
        206,
        whole[5:10],
        f"bytes 5-9/{size}",
    )
    assert await get(range="bytes=5-9", if_range='"other"') == (200, whole, None)
    for known in (f'"{etag}"', f'"x", W/"{etag}"', "*"):
        assert await get(if_none_match=known) == (304, b"", None)
    assert await get(if_none_match='"other"') == (200, whole, None)


async def test_a_zip_has_every_file_and_a_length_known_beforehand(exporting: Served) -> None:
    told = await exported(exporting)
    answer = await exporting.client.get("/v1/exports/latest/zip?format=csv", follow_redirects=True)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.headers["content-disposition"].endswith('.zip"')
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert {f["path"]: f["sha256"] for f in told["files"]} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in found.items()
        if name != "manifest.json"
    }
    assert "manifest.json" in found


async def test_an_export_that_is_being_read_is_sent_whole(exporting: Served, sink: Sink) -> None:
    told = await exported(exporting, formats=["json"])
    file = next(file for file in told["files"] if file["path"].endswith(".json"))
    path = f"{told['location']}/files/{file['path']}"
    async with exporting.client.stream("GET", path) as answer:
        await asyncio.to_thread(DirectoryPlace(sink.exports).remove, told["directory"])
        content = await answer.aread()
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert problem(await exporting.client.get(path)) == (404, "no_such_export")


@pytest.mark.parametrize("size", [None, 0, -1, 1, "link", "directory"])
async def test_a_file_that_is_not_as_the_manifest_says_is_refused(
    exporting: Served, sink: Sink, size: int | str | None
) -> None:
    told = await exported(exporting, formats=["csv"], entities=["users"])
    path = next(file["path"] for file in told["files"] if file["bytes"] > 1)
    on_disk = sink.exports / told["directory"] / path
    content = on_disk.read_bytes()
    on_disk.unlink()
    if isinstance(size, int):
        on_disk.write_bytes(content[:size] if size <= 0 else content + b"x")
    elif size == "link":
        (sink.exports / "elsewhere").write_bytes(content)
        on_disk.symlink_to(sink.exports / "elsewhere")
    elif size == "directory":
        on_disk.mkdir()
    for below in (f"files/{path}", "zip"):
        answer = await exporting.client.get(
            f"{told['location']}/{below}", headers={"range": f"bytes={len(content) - 1}-"}
        )
        assert problem(answer) == (500, "damaged_export")
        assert path in answer.json()["detail"]


async def test_pages_go_from_the_newest_to_the_oldest(exporting: Served, sink: Sink) -> None:
    made = []
    for _ in range(3):
        made.append((await exported(exporting, formats=["csv"]))["directory"])
        sink.clock.now += 2_000
    first = (await exporting.client.get("/v1/exports?limit=2")).json()
    query = {"limit": 2, "after": first["next"]}
    second = (await exporting.client.get("/v1/exports", params=query)).json()
    listed = [one["directory"] for one in (*first["exports"], *second["exports"])]
    assert sorted(listed) == sorted(made)
    assert second["next"] is None
    for query in ({"limit": 0}, {"limit": "x"}, {"format": "pdf"}, {"entity": "x"}):
        answer = await exporting.client.get("/v1/exports", params=query)
        assert problem(answer) == (400, "malformed_parameter")
    gone = await exporting.client.get("/v1/exports?after=x")
    assert problem(gone) == (410, "stale_cursor")


async def test_a_request_has_a_place_to_look_at(exporting: Served) -> None:
    client = exporting.client
    answer = await client.post("/v1/exports", json={"id": "nightly-1", "formats": ["csv"]})
    assert answer.status_code == 202
    place = answer.headers["location"]
    assert place == "/v1/exports/requests/nightly-1"
    told = (await client.get(f"{place}?wait=60s")).json()
    assert (told["request_id"], told["status"]) == ("nightly-1", "finished")
    again = await client.post("/v1/exports?wait=60s", json={"id": "nightly-1", "formats": ["csv"]})
    assert again.json()["id"] == told["id"], "one id, one export"
    assert problem(await client.get("/v1/exports/requests/other")) == (404, "unknown_request")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'{"id": "a b"}', b'{"entities": ["x"]}', b'{"formats": ["pdf"]}', b'{"x": 1}',
     b'{"start": "yesterday"}', b'{"incremental": "schedule:weekly"}'],
)  # fmt: skip
async def test_a_request_that_no_sink_would_take_is_a_problem(
    exporting: Served, body: bytes
) -> None:
    answer = await exporting.client.post("/v1/exports", content=body)
    assert problem(answer) == (400, "malformed_request")
    large = await exporting.client.post("/v1/exports", content=b" " * 20_000)
    assert problem(large) == (413, "body_too_large")


@pytest.mark.parametrize(
    "path",
    ["x", "x/zip", "..%2f..%2fetc", "20260101T000000Z_00000000-0000-4000-8000-000000000000"],
)
async def test_what_is_no_export_is_not_found(exporting: Served, path: str) -> None:
    answer = await exporting.client.get(f"/v1/exports/{path}")
    assert answer.status_code == 404
    assert problem(answer)[0] == 404


async def test_no_other_file_of_the_directory_is_sent(exporting: Served, sink: Sink) -> None:
    told = await exported(exporting, formats=["csv"])
    (sink.exports / told["directory"] / "secret.txt").write_text("secret")
    for path in ("secret.txt", "../secret.txt", "%2e%2e/secret.txt", "manifest.json", ""):
        answer = await exporting.client.get(f"{told['location']}/files/{path}")
        assert answer.status_code == 404


async def test_a_process_that_starts_knows_what_was_announced_before(
    exporting: Served, sink: Sink, another: Another
) -> None:
    told = await exported(exporting, id="before", formats=["csv"])
    async with served(await another(), sink.names, place=DirectoryPlace(sink.exports)) as http:
        answer = await http.client.get("/v1/exports/requests/before")
        assert (answer.status_code, answer.json()) == (200, told)
        async with http.client.stream("GET", "/v1/exports/stream") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == ": connected"
            after = await exported(http, id="after", formats=["csv"])
            async for line in lines:
                if line.startswith("data: "):
                    assert json.loads(line[6:])["request_id"] == "after", "no history as news"
                    break
        assert after["request_id"] == "after"


async def test_events_come_as_they_happen_and_can_be_taken_up_again(exporting: Served) -> None:
    async def events(last: str | None, until: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        headers = {} if last is None else {"last-event-id": last}
        async with exporting.client.stream("GET", "/v1/exports/stream", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            coordinate = ""
            async for line in answer.aiter_lines():
                if line == ": connected" and last is None:
                    connected.set()
                if line.startswith("id: "):
                    coordinate = line[4:]
                if line.startswith("data: "):
                    found.append((coordinate, json.loads(line[6:])))
                    if found[-1][1]["status"] == until:
                        return found
        raise AssertionError("the stream ends")

    connected = asyncio.Event()
    watching = asyncio.create_task(events(None, "finished"))
    await connected.wait()
    told = await exported(exporting, formats=["csv"])
    found = await watching
    assert found[-1][1] == told
    first, *rest = found
    assert first[1]["status"] == "started"
    assert await events(first[0], "finished") == rest, "behind the last one that was seen"
