"""A bucket that is away for a while, before a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.bucket_kit import LARGE, Gate, World, killed
from tests.unit.place_kit import (
    FIRST,
    ID,
    SECOND,
    KilledError,
    die,
    never,
    published,
    staged,
    whole,
)
from worker.errors import StateError
from worker.exports.places import outages


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.0)


def test_an_outage_at_any_request_fails_no_export(world: World, tmp_path: Path) -> None:
    """And each try has a client of its own, so none runs out of tries."""
    gate = Gate()
    gate.shut_at = lambda asked: asked % 5 != 4
    place = world.sink_behind(gate)
    attempt = staged(place, FIRST, "whole", LARGE)
    told: list[str | None] = []
    place.tell(told.append)
    with capture_logs() as logs:
        assert place.publish(attempt, never).name == FIRST
    attempt.discard()
    assert world.uploads() == 0
    assert whole(place, FIRST, tmp_path / "copy") == "whole"
    assert [found.name for found in place.finished()] == [FIRST]
    place.remove(FIRST)
    assert (world.held(), place.sealed(ID)) == ([], True)
    assert gate.connects > 40
    assert told[0] is not None
    assert "no answer from the server (EndpointConnectionError)" in told[0]
    assert told[-1] is None
    events = [entry["event"] for entry in logs]
    assert events[:5] == ["export_place_away"] * 4 + ["export_place_back"]


def test_a_bucket_that_is_away_is_noticed_without_an_export(world: World) -> None:
    gate = Gate()
    place = world.sink_behind(gate, patience=0)
    place.check()
    gate.shut_from(0)
    with pytest.raises(StateError, match="no answer from the server"):
        place.check()


def test_what_an_outage_left_is_removed_by_the_next_sweep(world: World) -> None:
    """Without waiting for a day: it is known whose it is."""
    gate = Gate()
    for shut_from in range(3, 14, 2):
        world.name = world.server.new_bucket()
        gate.shut_at = lambda asked, least=shut_from: asked >= least  # type: ignore[misc]
        place = world.sink_behind(gate, patience=0)
        attempt = staged(place, FIRST, more=LARGE)
        try:
            place.publish(attempt, never)
        except StateError:
            pass
        else:
            assert shut_from == 13
        attempt.discard()
        gate.open()
        assert place.sweep() == []
        assert world.uploads() == 0
        seal_failed = "/.seals/" in gate.refused[0] and shut_from > 3
        if seal_failed and not world.sink().sealed(ID):
            assert len(world.held()) == 3, "nobody knows whether it arrived: that takes a day"
        else:
            assert (world.held() != []) == world.sink().sealed(ID)


def test_what_another_attempt_has_put_there_since_stays(world: World, tmp_path: Path) -> None:
    gate = Gate()
    gate.shut_from(4)
    place = world.sink_behind(gate, patience=0)
    attempt = staged(place, FIRST)
    with pytest.raises(StateError):
        place.publish(attempt, never)
    attempt.discard()
    for key in world.held():
        world.client.delete_object(Bucket=world.name, Key=key)
    assert published(world.sink(), FIRST, "other") == FIRST
    gate.open()
    assert place.sweep() == []
    assert whole(place, FIRST, tmp_path / "copy") == "other"


def test_how_old_objects_are_is_asked_of_the_server(world: World) -> None:
    """So no clock that is wrong here removes what another sink is uploading."""
    victim = world.new_client()
    attempt = staged(world.sink(), FIRST, more=LARGE)
    with killed(victim, 7, answered=True), pytest.raises(KilledError):
        world.sink(victim).publish(attempt, never)
    die(attempt)
    gate = Gate()
    place = world.sink_behind(gate)
    assert place.sweep() == []
    assert world.uploads() == 1

    def two_days_later(parsed: Any, **_: Any) -> None:
        date = format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)
        parsed["ResponseMetadata"]["HTTPHeaders"]["date"] = date

    assert gate.client is not None
    gate.client.meta.events.register("after-call.s3.ListObjectsV2", two_days_later)
    assert place.sweep() == [FIRST]
    assert (world.uploads(), world.held()) == (0, [])


def test_a_clock_that_is_wrong_here_is_waited_for(world: World) -> None:
    """The server refuses what is signed at another time than its own."""
    gate = Gate()
    place = world.sink_behind(gate)
    asked: list[int] = []
    assert published(place, SECOND) == SECOND
    told: list[str | None] = []
    place.tell(told.append)
    error = {
        "Error": {"Code": "RequestTimeTooSkewed"},
        "ResponseMetadata": {"HTTPStatusCode": 403, "HTTPHeaders": {}},
    }

    def skewed(**_: Any) -> Any:
        asked.append(1)
        return None if len(asked) > 1 else (_Forbidden(), error)

    assert gate.client is not None
    gate.client.meta.events.register("before-call.s3", skewed)
    assert place.find_or_finish(ID) is not None
    assert told[0] is not None
    assert "the clock of this machine, or of the server, is wrong" in told[0]


class _Forbidden:
    status_code = 403
