"""Files of exports in a bucket: sent by the API, or by the bucket itself if the setting says so."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another
from tests.contract.bucket_kit import Gate, World
from tests.contract.http_kit import problem, served
from tests.contract.worker_kit import Stage
from tests.unit.place_kit import DATA, FIRST, published
from worker.exports.places import outages
from worker.exports.places.directory import DirectoryPlace

pytestmark = pytest.mark.timeout(200)

FILE = f"/v1/exports/{FIRST}/files/{DATA}/users.csv"
CONTENT = "0123456789"


async def test_a_client_is_sent_to_the_bucket_for_a_while(
    world: World, stage: Stage, another: Another
) -> None:
    place = world.sink()
    published(place, FIRST, CONTENT)
    broker = await another()
    async with served(broker, stage.names, place=place, redirect_downloads=True) as http:
        answer = await http.client.get(FILE)
        assert (answer.status_code, answer.content) == (307, b"")
        assert answer.headers["cache-control"] == "no-store"
        location = answer.headers["location"]
        assert location.startswith(f"{world.server.endpoint}/{world.name}/exports/{FIRST}/")
        assert "etag" not in answer.headers, "the bucket has one of its own"

        found = await http.client.get(FILE, follow_redirects=True)
        assert found.text == CONTENT
        assert found.headers["content-type"] == "text/csv; charset=utf-8"
        name = 'attachment; filename="buddy_users_2025-11-22.csv"'
        assert found.headers["content-disposition"] == name
        part = await http.client.get(FILE, follow_redirects=True, headers={"range": "bytes=4-"})
        assert (part.status_code, part.text) == (206, CONTENT[4:])

        forged = await http.client.get(location.replace("users.csv", "matches.csv"))
        assert forged.status_code == 403
        head = await http.client.head(FILE)
        assert (head.status_code, head.headers["content-length"]) == (200, "10")
        zipped = await http.client.get(f"/v1/exports/{FIRST}/zip")
        assert (zipped.status_code, int(zipped.headers["content-length"])) == (
            200,
            len(zipped.content),
        )

        world.client.delete_object(Bucket=world.name, Key=f"exports/{FIRST}/{DATA}/users.csv")
        assert problem(await http.client.get(FILE)) == (500, "damaged_export")
        place.remove(FIRST)
        assert problem(await http.client.get(FILE)) == (404, "no_such_export")


async def test_without_the_setting_the_api_sends_it(
    world: World, stage: Stage, another: Another
) -> None:
    place = world.sink()
    published(place, FIRST, CONTENT)
    async with served(await another(), stage.names, place=place) as http:
        answer = await http.client.get(FILE)
        assert (answer.status_code, answer.text) == (200, CONTENT)
        assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT.encode()).hexdigest()}"'


async def test_a_download_waits_for_a_bucket_that_goes_away_in_the_middle(
    world: World, stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.0)
    gate = Gate()
    place = world.sink_behind(gate, patience=0)
    content = CONTENT * 600_000  # three ranges
    published(place, FIRST, content)
    async with served(await another(), stage.names, place=place) as http:
        gate.asked = 0
        gate.shut_at = lambda asked: 3 <= asked < 9  # after those that find the export and its file
        with capture_logs() as logs:
            answer = await http.client.get(FILE)
        assert (answer.status_code, answer.text == content) == (200, True)
        assert gate.refused
        assert {"export_place_away", "export_place_back"} <= {entry["event"] for entry in logs}


async def test_a_download_that_cannot_go_on_is_told(
    world: World, stage: Stage, another: Another
) -> None:
    gate = Gate()
    place = world.sink_behind(gate)
    published(place, FIRST, CONTENT * 600_000)

    def removed(asked: int) -> bool:
        if asked == 4:
            key = f"exports/{FIRST}/{DATA}/users.csv"
            world.client.delete_object(Bucket=world.name, Key=key)
        return False

    async with served(await another(), stage.names, place=place) as http:
        gate.asked = 0
        gate.shut_at = removed
        with capture_logs() as logs, pytest.raises(httpx.RemoteProtocolError):
            await http.client.get(FILE)
    told = [entry for entry in logs if entry["log_level"] in ("warning", "error")]
    assert [entry["event"] for entry in told] == ["http_cut_off"]
    assert told[0]["path"] == "/v1/exports/{name}/files/{path:path}"


async def test_a_directory_sends_nobody_elsewhere(
    stage: Stage, another: Another, tmp_path: Path
) -> None:
    place = DirectoryPlace(tmp_path / "exports")
    published(place, FIRST, CONTENT)
    broker = await another()
    async with served(broker, stage.names, place=place, redirect_downloads=True) as http:
        answer = await http.client.get(FILE)
        assert (answer.status_code, answer.text) == (200, CONTENT)
