"""Who may do what over HTTP."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from tests.contract.broker_kit import Another
from tests.contract.http_kit import inputs, problem, served
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import uuid
from worker.exports.places.directory import DirectoryPlace
from worker.http.access import Tokens

pytestmark = pytest.mark.timeout(200)


def tokens(tmp_path: Path) -> Tokens:
    path = tmp_path / "tokens.toml"
    tables = [
        f'[[tokens]]\nname = "{name}"\nroles = ["{role}"]\nsha256 = "{digest}"\n'
        for name, role in (("crm", "send"), ("reader", "fetch"))
        for digest in [sha256(name.encode()).hexdigest()]
    ]
    path.write_text("".join(tables))
    return Tokens(path)


KEYED = {"idempotency-key": "once", "buddy-producer": "import"}


async def test_a_token_with_the_role_is_needed(
    stage: Stage, another: Another, tmp_path: Path
) -> None:
    path = "/v1/records/users"
    place = DirectoryPlace(tmp_path / "exports")
    async with served(await another(), stage.names, tokens(tmp_path), place=place) as http:
        nobody = await http.client.post(path, content=b"{}")
        assert problem(nobody) == (401, "unauthorized")
        assert nobody.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer unknown", "Basic crm", "crm", "Bearer"):
            answer = await http.client.post(path, content=b"{}", headers={"authorization": wrong})
            assert problem(answer) == (401, "unauthorized")
        reader = {"authorization": "Bearer reader"}
        answer = await http.client.post(path, content=b"{}", headers=reader)
        assert problem(answer) == (403, "forbidden")
        crm = {"authorization": "bearer crm", "host": "buddy.example.org"}
        answer = await http.client.post(path, content=b"{}", headers=crm)
        assert (answer.status_code, answer.json()["sent"]) == (202, 1)


async def test_a_record_names_its_producer(stage: Stage, another: Another, tmp_path: Path) -> None:
    """By the header of the request, or else by the token: rejections can be told apart by it."""
    path = "/v1/records/users"
    place = DirectoryPlace(tmp_path / "exports")
    async with served(await another(), stage.names, tokens(tmp_path), place=place) as http:
        crm = {"authorization": "Bearer crm"}
        for named in ({}, {"buddy-producer": "night import"}, KEYED):
            await http.client.post(path, content=b"{}", headers=crm | named)
        await http.client.delete(f"{path}/{uuid(1)}", headers=crm)
        for wrong in ("", "x" * 65, "a\tb"):
            answer = await http.client.post(
                path, content=b"{}", headers=crm | {"buddy-producer": wrong}
            )
            assert problem(answer) == (400, "malformed_producer")
    found = [dict(message.headers).get("buddy-producer") for message in await inputs(stage)]
    assert sorted(found, key=str) == [b"crm", b"crm", b"import", b"night import"]
