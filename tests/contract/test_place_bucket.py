"""A bucket on a real server: kills between any two requests, parts, lost answers, leftovers."""

from __future__ import annotations

import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from tests.contract.bucket_kit import LARGE, MIB, PART, World, killed
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
from worker.exports.places.place import SEAL_DAYS, NoSealError

ANOTHER = "00000000-0000-4000-8000-000000000000"

# --- Kills ----------------------------------------------------------------------------------------


def test_a_kill_at_any_request_leaves_all_or_nothing_and_the_next_one_finishes(
    world: World, tmp_path: Path
) -> None:
    outcomes = set()
    for step in range(100):
        for answered in (False, True):
            world.name = world.server.new_bucket()
            attempt = staged(world.sink(), FIRST, "killed", {"large.bin": bytes(PART + 1)})
            victim = world.new_client()
            with killed(victim, step, answered=answered) as made:
                try:
                    world.sink(victim).publish(attempt, never)
                except KilledError:
                    die(attempt)
                else:
                    assert step >= len(made), "beyond the last step"
            case = tmp_path / f"{step}{answered}"
            seen = [found.name for found in world.sink().finished()]
            assert seen in ([], [FIRST])
            if seen:
                assert whole(world.sink(), FIRST, case / "seen") == "killed", "never half of it"
            sealed = world.sink().sealed(ID)
            survivor = world.sink()
            counts = published(survivor, SECOND, "other")
            assert counts == (FIRST if sealed else SECOND)
            text = whole(survivor, counts, case / "after")
            assert text == ("killed" if sealed else "other")
            outcomes.add((bool(seen), sealed))
            world.clock.ahead = timedelta(days=2)
            world.sink().sweep()
            world.clock.ahead = timedelta()
            assert {key.split("/")[1] for key in world.held()} == {counts}, "leftovers are gone"
            assert world.uploads() == 0
        if step >= len(made):
            break
    assert step > 10
    assert outcomes == {(False, False), (False, True), (True, True)}


def test_what_is_sealed_is_finished_by_a_sweep_as_well(world: World) -> None:
    place = world.sink()
    published(place, FIRST)
    world.client.delete_object(Bucket=world.name, Key=f"exports/{FIRST}/manifest.json")
    assert list(world.sink().finished()) == []
    assert world.sink().sweep() == []
    assert [found.name for found in place.finished()] == [FIRST]


def test_a_damaged_seal_is_named_after_all_else_is_swept(world: World) -> None:
    place = world.sink()
    published(place, FIRST)
    world.client.delete_object(Bucket=world.name, Key=f"exports/{FIRST}/manifest.json")
    world.client.put_object(Bucket=world.name, Key=f"exports/.seals/{ID}.json", Body=b"garbage")
    other = f"exports/{FIRST.replace(ID, ANOTHER)}/users.csv"
    world.client.put_object(Bucket=world.name, Key=other, Body=b"left by the dead")
    world.clock.ahead = timedelta(days=2)
    with pytest.raises(NoSealError, match=rf"{ID}\.json is no seal: remove it; then an export may"):
        world.sink().sweep()
    assert other not in world.held()
    assert world.held(), "what the seal may decide is kept"


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("step", range(7))
def test_a_kill_while_removing_never_shows_half_of_it(
    world: World, tmp_path: Path, step: int, answered: bool
) -> None:
    published(world.sink(), FIRST)
    victim = world.new_client()
    with killed(victim, step, answered=answered):
        try:
            world.sink(victim).remove(FIRST)
        except KilledError:
            pass
        else:
            assert step == 6
    seen = [found.name for found in world.sink().finished()]
    if seen:
        assert whole(world.sink(), FIRST, tmp_path / "seen") == "1"
        world.sink().remove(FIRST)
    assert world.sink().find_or_finish(ID) is None
    world.sink().sweep()
    assert world.held() == []
    assert world.sink().sealed(ID)


# --- Two sinks ------------------------------------------------------------------------------------


def test_the_objects_of_whoever_comes_second_are_gone(world: World) -> None:
    one, other = world.sink(), world.sink()
    first, second = staged(one, FIRST, "first", LARGE), staged(other, SECOND, "second", LARGE)

    def overtaken() -> bool:
        nonlocal first
        if not other.sealed(ID):
            other.publish(second, never)
        return False

    found = one.publish(first, overtaken)
    assert found.manifest.spec_version == "second"
    assert {key.split("/")[1] for key in world.held()} == {SECOND}
    assert world.uploads() == 0
    for attempt in (first, second):
        attempt.discard()


def test_a_zombie_that_finishes_after_the_removal_shows_nothing(world: World) -> None:
    published(world.sink(), FIRST)
    manifest = f"exports/{FIRST}/manifest.json"
    world.client.delete_object(Bucket=world.name, Key=manifest)
    zombie = world.new_client()

    def removed_meanwhile(request: Any, **_: Any) -> None:
        if request.method == "PUT" and request.url.endswith("/manifest.json"):
            zombie.meta.events.unregister("before-send.s3", removed_meanwhile)
            world.sink().remove(FIRST)

    zombie.meta.events.register("before-send.s3", removed_meanwhile)
    assert world.sink(zombie).find_or_finish(ID) is None
    assert world.held() == []


def test_a_take_over_within_the_same_second_is_published(world: World, tmp_path: Path) -> None:
    """Under the name of the next second: the name of an attempt is free to differ."""
    victim = world.new_client()
    one = staged(world.sink(), FIRST, "dead")
    with killed(victim, 4, answered=True), pytest.raises(KilledError):
        world.sink(victim).publish(one, never)
    die(one)
    before = world.held()
    assert len(before) == 2
    assert published(world.sink(), FIRST, "alive") == SECOND
    assert whole(world.sink(), SECOND, tmp_path / "copy") == "alive"
    assert world.held(f"exports/{FIRST}") == before, "nothing of another one is touched"
    assert world.sink().find_or_finish(ID) == next(world.sink().finished())


def test_of_two_within_the_same_second_one_counts(world: World, tmp_path: Path) -> None:
    one, other = world.sink(), world.sink()
    first, second = staged(one, FIRST, "first"), staged(other, FIRST, "second")

    def overtaken() -> bool:
        if world.held() and not other.sealed(ID):
            assert other.publish(second, never).name == SECOND
        return False

    found = one.publish(first, overtaken)
    assert (found.name, found.manifest.spec_version) == (SECOND, "second")
    assert {key.split("/")[1] for key in world.held()} == {SECOND}
    for attempt in (first, second):
        attempt.discard()


# --- Uploading ------------------------------------------------------------------------------------


def test_a_large_file_goes_in_parts_and_takes_little_memory(world: World, tmp_path: Path) -> None:
    place = world.sink()
    attempt = staged(place, FIRST, more={"large.bin": bytes(53 * MIB)})
    parts: list[str] = []
    world.client.meta.events.register(
        "before-send.s3",
        lambda request, **_: parts.append(request.url) if "partNumber=" in request.url else None,
    )
    place.find_or_finish(ID)  # what the client needs once
    tracemalloc.start()
    try:
        place.publish(attempt, never)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    attempt.discard()
    assert len(parts) == 11
    assert peak < 3 * PART
    head = world.client.head_object(Bucket=world.name, Key=f"exports/{FIRST}/large.bin")
    assert head["ETag"].endswith('-11"')
    assert whole(place, FIRST, tmp_path / "copy") == "1"


def test_giving_up_between_two_parts_leaves_nothing(world: World) -> None:
    place = world.sink()
    attempt = staged(place, FIRST, more=LARGE)
    asked = iter([False] * 4 + [True] * 10)
    with pytest.raises(StateError, match="given up"):
        place.publish(attempt, lambda: next(asked))
    attempt.discard()
    assert world.held() == []
    assert world.uploads() == 0
    assert not place.sealed(ID)


@pytest.mark.parametrize("lost", ["users.csv", "large.bin", "seals", "manifest.json"])
def test_an_answer_that_is_lost_does_not_make_it_take_itself_for_another(
    world: World, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.0)
    client = world.new_client()
    sent: list[str] = []

    def lose(request: Any, **_: Any) -> None:
        """Send it behind the client's back; the client believes that nobody answered."""
        last = request.method == "POST" and "uploadId=" in request.url
        whole_put = request.method == "PUT" and "partNumber=" not in request.url
        if lost in request.url and (last or whole_put) and not sent:
            sent.append(request.url)
            client._endpoint.http_session.send(request)  # type: ignore[attr-defined]
            raise ReadTimeoutError(endpoint_url=request.url)

    client.meta.events.register("before-send.s3", lose)
    place = world.sink(client)
    attempt = staged(place, FIRST, "mine", LARGE)
    assert place.publish(attempt, never).manifest.spec_version == "mine"
    attempt.discard()
    assert len(sent) == 1
    assert whole(world.sink(), FIRST, tmp_path / "copy") == "mine"


def test_a_failure_on_the_way_removes_what_it_uploaded(world: World) -> None:
    client = world.new_client()

    def refuse(request: Any, **_: Any) -> None:
        if "partNumber=3" in request.url:
            request.headers["Authorization"] = "AWS nobody:nothing"

    client.meta.events.register("before-send.s3", refuse)
    place = world.sink(client)
    attempt = staged(place, FIRST, more=LARGE)
    with pytest.raises(StateError, match="access was refused"):
        place.publish(attempt, never)
    attempt.discard()
    assert world.held() == []
    # The upload is aborted with one request, which may fail: then the next sweep aborts it.
    place.sweep()
    assert world.uploads() == 0


# --- Sweeping -------------------------------------------------------------------------------------


def test_what_is_being_uploaded_is_not_swept_and_what_was_abandoned_is(world: World) -> None:
    victim = world.new_client()
    attempt = staged(world.sink(), FIRST, more=LARGE)
    with killed(victim, 7, answered=True), pytest.raises(KilledError):
        world.sink(victim).publish(attempt, never)
    die(attempt)
    for key in ("exports/mine.txt", f"elsewhere/{FIRST}/x", "exports/notes/x"):
        world.client.put_object(Bucket=world.name, Key=key, Body=b"")
    before = world.held("")
    assert (len(before), world.uploads()) == (5, 1)
    assert world.sink().sweep() == []
    probe = "exports/.seals/conditional-writes"
    assert (sorted({*world.held(""), probe}), world.uploads()) == (sorted({*before, probe}), 1)
    world.clock.ahead = timedelta(days=1, minutes=1)
    assert world.sink().sweep() == [FIRST]
    assert world.uploads() == 0
    assert world.held("") == [
        f"elsewhere/{FIRST}/x",
        probe,
        "exports/mine.txt",
        "exports/notes/x",
    ]


def test_seals_go_when_their_requests_cannot_come_again(world: World) -> None:
    published(world.sink(), FIRST)
    world.clock.ahead = timedelta(days=SEAL_DAYS + 1)
    world.sink().sweep()
    assert world.sink().find_or_finish(ID) is not None, "its export is there"
    world.sink().remove(FIRST)
    world.clock.ahead = timedelta(days=SEAL_DAYS - 1)
    world.sink().sweep()
    assert world.seal()["removed"] is True
    world.clock.ahead = timedelta(days=SEAL_DAYS + 1)
    world.sink().sweep()
    assert not world.sink().sealed(ID)
    assert world.held("exports/") == ["exports/.seals/conditional-writes"]


def test_files_that_were_removed_by_hand_do_not_come_back_by_halves(world: World) -> None:
    place = world.sink()
    published(place, FIRST)
    for key in world.held()[1:]:
        world.client.delete_object(Bucket=world.name, Key=key)
    assert place.find_or_finish(ID) is None
    assert list(place.finished()) == []
    world.clock.ahead = timedelta(days=2)
    assert place.sweep() == [FIRST]
    assert place.sealed(ID)


def test_the_mark_of_an_export_goes_with_it(world: World) -> None:
    place = world.sink()
    ahead = f"20991122T103000Z_{ID[:-1]}9"
    published(place, ahead)
    published(place, FIRST)
    assert world.held("exports/.ahead") == [f"exports/.ahead/{FIRST[:16]}_{ahead}"]
    assert place.sweep() == []
    assert len(world.held("exports/.ahead")) == 1
    place.remove(ahead)
    place.sweep()
    assert world.held("exports/.ahead") == []
