"""What holds for every place of exports: a directory, and a bucket on a real server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.s3_server import S3Server
from tests.unit.place_kit import DATA, FIRST, ID, SECOND, die, never, published, staged, whole
from worker.errors import StateError
from worker.exports.places.bucket import BucketPlace
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.objects import Bucket
from worker.exports.places.place import ExportPlace, GoneError
from worker.exports.places.staging import Staging

Sink = Callable[[], ExportPlace]
"""Another sink on the same place, with a room of its own."""


@pytest.fixture(params=["directory", "bucket", "bucket and prefix"])
def sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sink]:
    if request.param == "directory":
        yield lambda: DirectoryPlace(tmp_path / "exports")
        return
    server: S3Server = request.getfixturevalue("s3")
    client, name = server.client(), server.new_bucket()
    prefix = "a/b" if "prefix" in request.param else ""
    rooms = (tmp_path / f"room-{n}" for n in range(100))
    yield lambda: BucketPlace(Bucket(lambda: client, name, prefix), next(rooms))
    client.close()


@pytest.fixture
def place(sink: Sink) -> ExportPlace:
    return sink()


def names(place: ExportPlace) -> list[str]:
    return [found.name for found in place.finished()]


def test_an_empty_place(place: ExportPlace) -> None:
    assert place.find_or_finish(ID) is None
    assert not place.sealed(ID)
    assert names(place) == []
    assert place.sweep() == []
    place.check()


def test_an_export_is_found_under_its_id_and_can_be_fetched(sink: Sink, tmp_path: Path) -> None:
    assert published(sink(), FIRST, "hello") == FIRST
    place = sink()
    found = place.find_or_finish(ID)
    assert found is not None
    assert (found.name, found.manifest.export_id) == (FIRST, ID)
    assert found.location.endswith(f"/{FIRST}")
    assert list(place.finished()) == [found]
    assert place.sealed(ID)
    assert whole(place, FIRST, tmp_path / "copy") == "hello"


def test_an_export_is_found_by_its_name(sink: Sink) -> None:
    published(sink(), FIRST, "hello")
    place = sink()
    found = place.find(FIRST)
    assert found is not None
    assert list(place.finished()) == [found]
    for other in (SECOND, ".seals", "..", "", f"{FIRST}/{DATA}"):
        assert place.find(other) is None


def test_a_file_is_read_from_any_offset(sink: Sink) -> None:
    place = sink()
    text = "0123456789" * 100_000
    published(place, FIRST, text)
    file = place.open(FIRST, f"{DATA}/users.csv")
    assert file.size == len(text)
    for start, stop in ((0, len(text)), (0, 1), (999_990, 1_000_000), (123_456, 800_001), (5, 5)):
        assert b"".join(file.chunks(start, stop)) == text[start:stop].encode()
    file.close()
    for name, path in ((SECOND, f"{DATA}.json"), (FIRST, "other"), ("..", "x"), (".seals", ID)):
        with pytest.raises(GoneError):
            place.open(name, path)
    place.remove(FIRST)
    with pytest.raises(GoneError):
        place.open(FIRST, f"{DATA}.json")


def test_of_two_attempts_the_one_that_seals_first_counts(sink: Sink, tmp_path: Path) -> None:
    place, other = sink(), sink()
    slow, quick = staged(place, FIRST, "slow"), staged(other, SECOND, "quick")
    assert other.publish(quick, never).name == SECOND
    found = place.publish(slow, never)
    slow.discard()
    quick.discard()
    assert (found.name, found.manifest.spec_version) == (SECOND, "quick")
    assert names(sink()) == [SECOND]
    assert whole(place, SECOND, tmp_path / "copy") == "quick"
    assert sink().sweep() == []


def test_of_many_that_publish_at_once_one_counts(sink: Sink, tmp_path: Path) -> None:
    sinks = [sink() for _ in range(6)]
    attempts = [staged(s, f"20251122T10300{n}Z_{ID}", str(n)) for n, s in enumerate(sinks)]
    together = threading.Barrier(len(sinks))

    def publish(place: ExportPlace, attempt: Staging) -> str:
        together.wait()
        return place.publish(attempt, never).name

    with ThreadPoolExecutor(len(sinks)) as pool:
        published_as = set(pool.map(publish, sinks, attempts))
    for attempt in attempts:
        attempt.discard()
    (name,) = published_as
    assert names(sink()) == [name]
    assert whole(sink(), name, tmp_path / "copy") == name[14]
    assert sink().sweep() == []


def test_an_export_that_is_given_up_is_not_sealed(sink: Sink) -> None:
    place = sink()
    attempt = staged(place, FIRST)
    with pytest.raises(StateError, match="given up"):
        place.publish(attempt, lambda: True)
    attempt.discard()
    assert not place.sealed(ID)
    assert published(place, SECOND) == SECOND


def test_the_newest_comes_first(place: ExportPlace) -> None:
    ids = [f"550e8400-e29b-41d4-a716-44665544000{n}" for n in range(3)]
    for hour, export_id in zip((11, 12, 13), ids, strict=True):
        published(place, f"20251122T{hour}0000Z_{export_id}")
    assert [name[9:11] for name in names(place)] == ["13", "12", "11"]
    assert [place.find_or_finish(i) is not None for i in ids] == [True] * 3


def test_what_a_clock_that_ran_ahead_has_stamped_is_not_the_newest(sink: Sink) -> None:
    place = sink()
    ids = [f"550e8400-e29b-41d4-a716-44665544000{n}" for n in range(3)]
    there = [f"20251122T{hour}0000Z_{i}" for hour, i in zip((11, 23, 12), ids, strict=True)]
    with capture_logs() as logs:
        for name in there:
            published(place, name)
    assert names(sink()) == there[::-1]
    told = [(e["name"], e["count"]) for e in logs if e["event"] == "export_out_of_order"]
    assert told == [(there[2], 1)]
    assert sink().sweep() == [], "a mark is no leftover"
    assert names(place) == there[::-1]


def test_what_was_removed_is_gone_and_does_not_come_again(sink: Sink) -> None:
    published(sink(), FIRST)
    place = sink()
    place.remove(FIRST)
    place.remove(FIRST)
    assert names(sink()) == []
    assert (place.find_or_finish(ID), place.sealed(ID)) == (None, True)
    with pytest.raises(StateError, match="is gone or damaged"):
        published(sink(), SECOND)
    assert names(place) == []
    assert place.sweep() == []


def test_a_removal_of_what_is_not_there(place: ExportPlace) -> None:
    place.remove(FIRST)
    assert not place.sealed(ID)


@pytest.mark.parametrize("name", ["", "..", "notes", ".seals"])
def test_only_exports_are_removed(place: ExportPlace, name: str) -> None:
    with pytest.raises(ValueError, match="no export's name"):
        place.remove(name)


def test_what_is_staged_and_dead_is_swept_and_what_is_alive_is_not(place: ExportPlace) -> None:
    alive = staged(place, FIRST, "alive")
    dead = staged(place, SECOND, "dead")
    die(dead)
    assert place.sweep() == [dead.outer.name]
    assert place.publish(alive, never).name == FIRST
    alive.discard()


def test_fetching_what_is_not_there_is_one_line(place: ExportPlace, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=FIRST):
        place.fetch(FIRST, tmp_path)
