"""A bucket that is set up wrongly is one clear line; set up rightly, it is found."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.contract.bucket_kit import World
from tests.maven import free_ports
from tests.unit.place_kit import DATA, FIRST, ID, never, published, staged
from worker.cli import connect_place as connect
from worker.cli.connect_place import place_of
from worker.cli.settings import S3Settings, Settings
from worker.errors import ConfigurationError, StateError
from worker.exports.places.bucket import BucketPlace

# --- What can be wrong ----------------------------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused(world: World) -> None:
    client = world.new_client()

    def ignore(params: Any, **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)

    client.meta.events.register("before-call.s3", ignore)
    with pytest.raises(StateError, match="ignores If-None-Match"):
        world.sink(client).sweep()


def _wrong_secret(world: World) -> BucketPlace:
    return world.sink(world.new_client(secret="guessed-secret"))


def _unknown_key(world: World) -> BucketPlace:
    return world.sink(world.new_client(key="nobody"))


def _no_bucket(world: World) -> BucketPlace:
    return world.sink(bucket="no-such-bucket")


def _no_server(world: World) -> BucketPlace:
    (port,) = free_ports(1)
    settings = Settings(
        exports="s3://bucket/exports",
        s3=S3Settings(endpoint=f"http://127.0.0.1:{port}", region="here", access_key_id="me"),
    )
    place = place_of(settings, {"BUDDY_S3_SECRET_ACCESS_KEY": "secret"}, patience=0)
    assert isinstance(place, BucketPlace)
    world.places.append(place)
    return place


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (_wrong_secret, r"access was refused \(SignatureDoesNotMatch\): check the credentials"),
        (_unknown_key, r"access was refused \(InvalidAccessKeyId\): check the credentials"),
        (_no_bucket, "there is no bucket no-such-bucket: create it, or change `exports`"),
        (_no_server, "no answer from the server .*: is it there"),
    ],
)
@pytest.mark.parametrize("use", ["sweep", "find_or_finish", "publish"])
def test_what_is_set_up_wrongly_is_one_clear_line(
    world: World,
    wrong: Callable[[World], BucketPlace],
    line: str,
    use: str,
) -> None:
    place = wrong(world)
    attempt = staged(world.sink(), FIRST)
    uses: dict[str, Callable[[], object]] = {
        "sweep": place.sweep,
        "find_or_finish": lambda: place.find_or_finish(ID),
        "publish": lambda: place.publish(attempt, never),
    }
    with pytest.raises(StateError, match=line) as caught:
        uses[use]()
    attempt.discard()
    said = str(caught.value)
    assert "\n" not in said
    assert "secret" not in said.replace("no-such", "")
    assert "s3://" in said
    assert world.held("") == []


# --- Settings -------------------------------------------------------------------------------------


def test_settings_lead_to_the_bucket(world: World, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the-secret-of-the-tests\n")
    settings = Settings(
        exports=f"s3://{world.name}/some/where/",
        data=str(tmp_path / "data"),
        s3=S3Settings(
            endpoint=world.server.endpoint,
            region="us-east-1",
            access_key_id="buddy",
            secret_access_key_file=str(tmp_path / "secret"),
        ),
    )
    place = place_of(settings, {})
    assert isinstance(place, BucketPlace)
    world.places.append(place)
    assert published(place, FIRST) == FIRST
    found = place.find_or_finish(ID)
    assert found is not None
    assert found.location == f"s3://{world.name}/some/where/{FIRST}"
    assert f"some/where/{FIRST}/manifest.json" in world.held("some/where/2")
    link = place.link(FIRST, f"{DATA}/users.csv", "text/csv", "inline")
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in link, "version 2 is refused by newer buckets"
    assert "X-Amz-Expires=300" in link
    assert urllib3.request("GET", link).data == b"1"
    assert [path.name for path in (tmp_path / "data").rglob("*")] == ["sink", "staging"]


def test_credentials_of_the_environment_do_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "buddy")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-the-tests")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", world.server.endpoint)
    place = place_of(Settings(exports=f"s3://{world.name}"), {"AWS_REGION": "us-east-1"})
    assert isinstance(place, BucketPlace)
    world.places.append(place)
    assert place.find_or_finish(ID) is None


@pytest.mark.parametrize("exports", ["s3://B_/x", "s3://a..b/x", "s3://bucket/a//b", "s3://b/../c"])
def test_what_is_no_bucket_is_one_clear_line(exports: str) -> None:
    with pytest.raises(ConfigurationError, match="names no bucket"):
        place_of(Settings(exports=exports), {})


def test_half_of_the_credentials_is_one_clear_line() -> None:
    settings = Settings(exports="s3://bucket")
    with pytest.raises(ConfigurationError, match="go together"):
        place_of(settings, {"BUDDY_S3_SECRET_ACCESS_KEY": "x"})


def test_an_endpoint_that_is_none_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "buddy:the-secret@nowhere")
    with pytest.raises(ConfigurationError, match="is no URL of a server") as raised:
        place_of(Settings(exports="s3://bucket", s3=S3Settings(region="here")), {})
    assert "the-secret" not in str(raised.value)


def test_no_credentials_at_all_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = place_of(Settings(exports="s3://bucket"), {"AWS_REGION": "us-east-1"})
    with pytest.raises(StateError, match="NoCredentialsError: check the credentials"):
        place.sweep()


def test_a_server_that_takes_calls_and_never_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connect._READ_SECONDS < 30
    monkeypatch.setattr(connect, "_READ_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = Settings(
            exports="s3://bucket/exports",
            data=str(tmp_path),
            s3=S3Settings(endpoint=f"http://127.0.0.1:{port}", region="here", access_key_id="me"),
        )
        place = place_of(settings, {"BUDDY_S3_SECRET_ACCESS_KEY": "secret"}, patience=1.0)
        told: list[str | None] = []
        place.tell(told.append)
        began = time.monotonic()
        with pytest.raises(StateError, match="no answer from the server"):
            list(place.finished())
        assert time.monotonic() - began < 10
        assert told


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
@pytest.mark.parametrize("key", ["tr0ub4dor\nX: 1", "tr0ub4dor€", "tr0ub4dor\udcff"])
def test_a_key_that_no_request_carries_is_one_clear_line_without_it(name: str, key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} holds characters") as caught:
        place_of(Settings(exports="s3://bucket"), {name: key})
    assert "tr0ub4dor" not in str(caught.value)
