"""Exports in an S3-compatible bucket, which several sinks may share.

A bucket has no rename, so the files are uploaded under their final names. They mean nothing until
the manifest exists. The next object is the seal `.seals/<export_id>.json`, put only if absent. The
seal contains the manifest, so any sink that finds it can finish the export. The last object is
`<name>/manifest.json`.

Two attempts at one export within the same second would share a name. An attempt that finds an
object of another attempt in its way continues under the name of the next second.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from worker.errors import StateError, UsageError
from worker.exports.layout import MANIFEST, id_in
from worker.exports.manifest import Manifest, decode
from worker.exports.order import AHEAD, Order, is_of, orders, overtaken
from worker.exports.places.hangs import Calls
from worker.exports.places.links import check_no_link
from worker.exports.places.objects import Bucket, Held, TakenError
from worker.exports.places.opened import FileInBucket
from worker.exports.places.place import (
    LINK_SECONDS,
    SEAL_DAYS,
    Finished,
    GoneError,
    NoSealError,
    Skipped,
    copy_out,
    finished_from,
    ignore_skipped,
    stop_if,
    tell_overtaken,
)
from worker.exports.places.staging import Staging, sweep

Clock = Callable[[], datetime]

_SEALS: Final = ".seals"
_PROBE: Final = f"{_SEALS}/conditional-writes"
_ABANDONED: Final = timedelta(days=1)
"""Age at which an unfinished upload counts as abandoned."""
_MOST_NAMES: Final = 100
"""Names to try: more than the attempts at one export that can begin within about a second."""
_STAMP: Final = "%Y%m%dT%H%M%SZ"


class _Seal(msgspec.Struct, frozen=True):
    """The attempt that won an export, and its name; `removed` once the export was removed."""

    name: str
    attempt: str
    manifest: str
    removed: bool = False


class BucketPlace:
    """An `ExportPlace` in a bucket. Exports are built in `room`, a directory of this sink alone."""

    def __init__(self, bucket: Bucket, room: Path, clock: Clock | None = None) -> None:
        """`clock` dates objects; by default it is the server's clock."""
        self._bucket = bucket
        self._room = room
        self._calls = Calls(room)
        self._clock = clock or bucket.now
        self._left: dict[str, str] = {}
        """Objects that could not be removed, each with the attempt that wrote it."""

    def tell(self, tell: Callable[[str | None], object]) -> None:
        """See `ExportPlace`."""
        self._bucket.tell(tell)

    def hang(self) -> str | None:
        """See `ExportPlace`: watches the disk of `room`. Calls to the bucket have time-outs."""
        return self._calls.hang()

    def close(self) -> None:
        """See `ExportPlace`."""
        self._bucket.close()

    def find_or_finish(self, export_id: str) -> Finished | None:
        """See `ExportPlace`."""
        seal = self._seal_of(export_id)
        if seal is None or seal.removed:
            return None
        content = self._bucket.read(f"{seal.name}/{MANIFEST}") or self._finish(export_id, seal)
        return None if content is None else self._decoded(seal.name, content)

    def sealed(self, export_id: str) -> bool:
        """See `ExportPlace`."""
        return self._seal_of(export_id) is not None

    def finished(self, skipped: Skipped = ignore_skipped) -> Iterator[Finished]:
        """See `ExportPlace`."""
        for name, order in self._orders().items():
            content = self._bucket.read(f"{name}/{MANIFEST}")
            found = None if content is None else self._decoded(name, content, skipped, order)
            if found is not None:
                yield found

    def staging(self, name: str) -> Staging:
        """See `ExportPlace`."""
        return Staging(self._room, name, self._calls)

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        """See `ExportPlace`."""
        export_id = id_in(staging.name)
        if export_id is None:
            raise ValueError(f"{staging.name} is no export's name")
        there = self.find_or_finish(export_id)
        if there is not None:
            return there
        if not self.sealed(export_id):
            self._publish(staging, export_id, abandoned)
        found = self.find_or_finish(export_id)
        if found is None:
            raise StateError(f"export {export_id} was published before, and is gone or damaged")
        return found

    def find(self, name: str) -> Finished | None:
        """See `ExportPlace`."""
        content = None if id_in(name) is None else self._bucket.read(f"{name}/{MANIFEST}")
        return None if content is None else self._decoded(name, content)

    def open(self, name: str, path: str) -> FileInBucket:
        """See `ExportPlace`."""
        size = None if id_in(name) is None else self._bucket.size(f"{name}/{path}")
        if size is None:
            raise GoneError(f"there is no file {self._bucket.url(f'{name}/{path}')}")
        return FileInBucket(self._bucket, f"{name}/{path}", size)

    def link(self, name: str, path: str, kind: str, disposition: str) -> str:
        """See `ExportPlace`: a presigned URL."""
        return self._bucket.link(f"{name}/{path}", kind, disposition, LINK_SECONDS)

    def fetch(self, name: str, directory: Path) -> None:
        """See `ExportPlace`."""
        where = self._bucket.url(name)
        content = self._bucket.read(f"{name}/{MANIFEST}")
        if content is None:
            raise GoneError(f"there is no export {where}")
        try:
            copy_out(
                content, where, directory, lambda p, to: self._bucket.download(f"{name}/{p}", to)
            )
        except StateError:
            if self._bucket.read(f"{name}/{MANIFEST}") is None:
                raise GoneError(f"export {where} has been removed meanwhile") from None
            raise

    def remove(self, name: str) -> None:
        """See `ExportPlace`: marks the seal as removed, deletes the manifest, then all else."""
        export_id = id_in(name)
        if export_id is None:
            raise ValueError(f"{name} is no export's name")
        seal = self._seal_of(export_id)
        if seal is not None and seal.name == name and not seal.removed:
            gone = msgspec.structs.replace(seal, manifest="", removed=True)
            self._bucket.put(_seal_name(export_id), msgspec.json.encode(gone))
        self._bucket.delete(f"{name}/{MANIFEST}")
        for held in self._bucket.objects(f"{name}/"):
            self._bucket.delete(held.name)

    def probe(self) -> None:
        """See `ExportPlace`: nothing to do, since each sweep already writes, and tests more."""

    def check(self) -> None:
        """See `ExportPlace`."""
        self._bucket.read(_PROBE)

    def sweep(self) -> list[str]:
        """See `ExportPlace`. Also raises `StateError` if the server ignores conditional writes.

        The same if `room` is a symbolic link: what it leads to may not be ours to remove. Raises
        `NoSealError` at the end, after everything else.
        """
        damaged: NoSealError | None = None
        check_no_link(self._room)
        self._probe()
        removed = [path.name for path in sweep(self._room)]
        for name, attempt in list(self._left.items()):
            self._bucket.discard(name, attempt)
            self._left.pop(name, None)
        limit = self._clock() - _ABANDONED
        self._bucket.abort_uploads(lambda name: id_in(name.partition("/")[0]) is not None, limit)
        exports: dict[str, list[Held]] = {}
        seals: list[Held] = []
        marks: list[str] = []
        for held in self._bucket.objects():
            folder, _, rest = held.name.partition("/")
            if folder == _SEALS:
                seals.append(held)
            elif folder == AHEAD:
                marks.append(rest)
            elif rest and id_in(folder) is not None:
                exports.setdefault(folder, []).append(held)
        for name, objects in exports.items():
            if not any(held.name == f"{name}/{MANIFEST}" for held in objects):
                try:
                    removed += self._finish_or_remove(name, objects, limit)
                except NoSealError as error:
                    damaged = error
        for mark in marks:
            if not is_of(mark, exports):
                self._bucket.delete(f"{AHEAD}/{mark}")
        self._forget_seals(seals, {id_in(name) for name in exports})
        if damaged is not None:
            raise damaged
        return removed

    def _publish(self, staging: Staging, export_id: str, abandoned: Callable[[], bool]) -> None:
        """Upload and seal. An attempt that fails or loses is discarded."""
        content = (staging.directory / MANIFEST).read_bytes()
        manifest = decode(content, staging.name)
        attempt = secrets.token_hex(8)
        marks = overtaken(self._orders(), staging.name)
        for mark in marks:
            self._bucket.put_new(f"{AHEAD}/{mark}", b"")
        tell_overtaken(staging.name, marks)
        for name in islice(_names(staging.name), _MOST_NAMES):
            try:
                uploaded = self._upload(staging.directory, name, manifest, attempt, abandoned)
            except TakenError:
                continue
            # From here on a failure may be just a lost answer: files of a sealed export must stay.
            if not self._seal(export_id, _Seal(name, attempt, content.decode())):
                self._discard(uploaded, attempt)
            return
        raise StateError(
            f"{_MOST_NAMES} other attempts at export {export_id} are in the way of this one: "
            f"remove what has no manifest in {self._bucket.url(staging.name)} and after it"
        )

    def _orders(self) -> dict[str, Order]:
        """The exports by name, newest first. Unfinished attempts may be among them."""
        folders = self._bucket.folders()
        held = self._bucket.objects(f"{AHEAD}/") if AHEAD in folders else []
        return orders(filter(id_in, folders), (each.name.partition("/")[2] for each in held))

    def _upload(
        self,
        directory: Path,
        name: str,
        manifest: Manifest,
        attempt: str,
        abandoned: Callable[[], bool],
    ) -> list[str]:
        """Upload all files or none; returns their names. Raises `TakenError` as `upload_new`."""
        uploaded: list[str] = []
        try:
            for file in manifest.files:
                stop_if(abandoned)
                uploaded.append(f"{name}/{file.path}")
                self._bucket.upload_new(uploaded[-1], directory / file.path, attempt, abandoned)
            stop_if(abandoned)
        except Exception:
            self._discard(uploaded, attempt)
            raise
        return uploaded

    def _seal(self, export_id: str, seal: _Seal) -> bool:
        """Decide the export; returns whether this attempt won."""
        for _ in range(5):
            if self._bucket.put_new(_seal_name(export_id), msgspec.json.encode(seal)):
                return True
            there = self._seal_of(export_id)
            if there is not None:
                return there.attempt == seal.attempt
        raise StateError(f"{self._bucket.url(_seal_name(export_id))} cannot be written")

    def _finish(self, export_id: str, seal: _Seal) -> bytes | None:
        """Write the manifest of a sealed export. None if its files have been removed since."""
        content = seal.manifest.encode()
        held = {found.name: found.bytes for found in self._bucket.objects(f"{seal.name}/")}
        for file in decode(content, self._bucket.url(seal.name)).files:
            if held.get(f"{seal.name}/{file.path}") != file.bytes:
                return None
        self._bucket.put_new(f"{seal.name}/{MANIFEST}", content)
        # A sink that froze before the put may thaw after another sink has removed the export.
        again = self._seal_of(export_id)
        if again is None or again.removed:
            self._bucket.delete(f"{seal.name}/{MANIFEST}")
            return None
        return content

    def _finish_or_remove(self, name: str, objects: list[Held], limit: datetime) -> list[str]:
        """Without a manifest: finish a sealed export, keep a live attempt, remove leftovers.

        Returns the names of what was removed.
        """
        export_id = id_in(name)
        assert export_id is not None
        seal = self._seal_of(export_id)
        if seal is not None and seal.name == name and self.find_or_finish(export_id) is not None:
            return []
        removed = seal is not None and seal.removed and seal.name == name
        if not removed and max(held.modified for held in objects) > limit:
            return []
        for held in objects:
            self._bucket.delete(held.name)
        return [name]

    def _forget_seals(self, seals: list[Held], exports: set[str | None]) -> None:
        limit = self._clock() - timedelta(days=SEAL_DAYS)
        for held in seals:
            export_id = Path(held.name).stem
            if held.name != _PROBE and export_id not in exports and held.modified < limit:
                self._bucket.delete(held.name)

    def _probe(self) -> None:
        """Raise StateError unless the server honours conditional writes.

        Without them two sinks could both publish, and neither would notice.
        """
        if self._bucket.put_new(_PROBE, b"") and self._bucket.put_new(_PROBE, b""):
            raise StateError(
                f"the server of {self._bucket.url()} ignores If-None-Match, so exports could be "
                "overwritten there: use one that honours it on put"
            )

    def _discard(self, names: list[str], attempt: str) -> None:
        """Remove the objects of a failed or lost attempt. The next sweep retries the rest."""
        self._left |= dict.fromkeys(names, attempt)
        try:
            for name in names:
                self._bucket.discard(name, attempt)
                self._left.pop(name, None)
        except StateError:  # the rest would fail as well
            return

    def _seal_of(self, export_id: str) -> _Seal | None:
        content = self._bucket.read(_seal_name(export_id))
        try:
            return None if content is None else msgspec.json.decode(content, type=_Seal)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            url = self._bucket.url(_seal_name(export_id))
            raise NoSealError(
                f"{url} is no seal: remove it; then an export may be made anew under this id"
            ) from None

    def _decoded(
        self,
        name: str,
        content: bytes,
        skipped: Skipped = ignore_skipped,
        order: Order | None = None,
    ) -> Finished | None:
        try:
            return finished_from(name, self._bucket.url(name), content, order)
        except UsageError as error:
            skipped(str(error))
            return None


def _seal_name(export_id: str) -> str:
    return f"{_SEALS}/{export_id}.json"


def _names(name: str) -> Iterator[str]:
    """The name, then the same name for each following second."""
    stamp, _, export_id = name.partition("_")
    moment = datetime.strptime(stamp, _STAMP)  # noqa: DTZ007 -- a name has no other zone
    while True:
        yield f"{moment.strftime(_STAMP)}_{export_id}"
        moment += timedelta(seconds=1)
