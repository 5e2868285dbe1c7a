"""Attempts at exports, and what tests of places say again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tests.unit.export_kit import metadata_of
from worker.exports.layout import MANIFEST
from worker.exports.manifest import ExportedFile, Options, Origin, build, encode
from worker.exports.places.place import ExportPlace
from worker.exports.places.staging import Staging
from worker.private import DIRECTORY_MODE

ID = "550e8400-e29b-41d4-a716-446655440000"
FIRST, SECOND = f"20251122T103000Z_{ID}", f"20251122T103001Z_{ID}"
DATA = "buddy_export_2025-11-22"


class KilledError(BaseException):
    """The process ends here."""


def never() -> bool:
    """Nobody gives up."""
    return False


def staged(
    place: ExportPlace, name: str, text: str = "1", more: Mapping[str, bytes] | None = None
) -> Staging:
    """An attempt up to its publication, told from others by its `text`."""
    made = place.staging(name)
    made.open()
    files = {f"{DATA}/users.csv": text.encode(), f"{DATA}.json": b"{}"} | dict(more or {})
    listed = []
    for path, content in files.items():
        (made.directory / path).parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        (made.directory / path).write_bytes(content)
        listed.append(ExportedFile(path, len(content), 0, hashlib.sha256(content).hexdigest()))
    metadata = msgspec.structs.replace(metadata_of({}), export_id=name.partition("_")[2])
    manifest = build(
        msgspec.structs.replace(metadata, version=text),
        Options(entities=(), formats=()),
        Origin(),
        tuple(listed),
        {},
        (),
    )
    (made.directory / MANIFEST).write_bytes(encode(manifest))
    return made


def published(place: ExportPlace, name: str, text: str = "1") -> str:
    """Publish an attempt as `write_export` does; the name of the export that counts."""
    made = staged(place, name, text)
    try:
        return place.publish(made, never).name
    finally:
        made.discard()


def die(attempt: Staging) -> None:
    """What a kill leaves of it: all but its lock."""
    attempt.release()


def whole(place: ExportPlace, name: str, room: Path) -> str:
    """The text of a finished export, which is read back and compared with its manifest."""
    room.mkdir(parents=True)
    place.fetch(name, room)
    manifest = next(f.manifest for f in place.finished() if f.name == name)
    for file in manifest.files:
        content = (room / file.path).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
    found = {p.relative_to(room).as_posix() for p in room.rglob("*") if p.is_file()}
    assert found == {MANIFEST, *(file.path for file in manifest.files)}
    return (room / DATA / "users.csv").read_text()
