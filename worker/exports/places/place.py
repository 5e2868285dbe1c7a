"""Where exports are published: what a directory and a bucket have in common.

Several sinks may publish to one place. Each builds an export in its own staging directory, and
publishes it under a name that contains the time of its own cut. So one export id can have several
attempts. The *seal* decides between them: it is created exclusively, once for each id. The export
is what the winner has staged. A sink that finds a seal without its export finishes the export. A
sink that loses the race for the seal discards its attempt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from worker.errors import StateError
from worker.exports.layout import MANIFEST
from worker.exports.manifest import Manifest, decode
from worker.exports.order import Order, order_of
from worker.exports.places.staging import Staging
from worker.private import DIRECTORY_MODE

LINK_SECONDS: Final = 300
"""How long a link to a file can be followed. A download that has begun may take longer."""

_log = structlog.get_logger(__name__)


class GoneError(StateError):
    """The export is not at the place: it was removed, or never existed."""


class NoSealError(StateError):
    """An object in the place of a seal is none: whether that one export is decided is unknown."""


class Finished(msgspec.Struct, frozen=True):
    """A finished export: its name at the place, its location for people, and its manifest.

    `order` sorts exports by their publication, oldest first.
    """

    name: str
    location: str
    manifest: Manifest
    manifest_sha256: str
    order: Order


Skipped = Callable[[str], object]
"""Called with one line for each entry that is named like an export but cannot be read as one."""


def ignore_skipped(_: str) -> None:
    """Tell nobody."""


class OpenFile(Protocol):
    """A file of a finished export, open for reading. Its methods block."""

    size: int

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`. Raises `StateError`."""

    def close(self) -> None:
        """Release it."""


class ExportPlace(Protocol):
    """Where finished exports are.

    Every method but `hang` blocks: run it in a thread. Each raises `StateError`, with one line, if
    the place refuses or cannot be reached.
    """

    def tell(self, tell: Callable[[str | None], object]) -> None:
        """Set the callback for outages: called with one line, or with None at the end.

        Meanwhile calls wait for the place. The callback may run in any thread.
        """

    def hang(self) -> str | None:
        """One line if a call to a disk hangs, which no time-out ends; None if none does."""

    def close(self) -> None:
        """Stop waiting for a place that is away: calls that wait give up."""

    def find_or_finish(self, export_id: str) -> Finished | None:
        """The export with that id, or None. A sealed export that is not there is finished first."""

    def sealed(self, export_id: str) -> bool:
        """Whether that id is decided: its export is there, will be, or has been removed."""

    def finished(self, skipped: Skipped = ignore_skipped) -> Iterator[Finished]:
        """All finished exports, newest first, in the order of their publication.

        Each is read on demand. An unreadable one is passed over, and `skipped` is told.
        """

    def staging(self, name: str) -> Staging:
        """A local directory, not yet open, in which to build the export of that name."""

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        """Publish a staged export that is complete and flushed. The seal is the last step but one.

        Returns the export with that id. If another attempt was sealed first, that one is returned,
        and nothing of this one remains at the place. A finished export is never overwritten. Raises
        `StateError` if `abandoned` turns true before the seal. The caller discards the staging
        afterwards, whatever happened.

        An export that is already there under a later time proves a wrong clock, its own or this
        one's. It is marked as older, and that is logged (`worker.exports.order`).
        """

    def find(self, name: str) -> Finished | None:
        """The finished export of that name, or None."""

    def open(self, name: str, path: str) -> OpenFile:
        """A file of a finished export. Raises `GoneError` if it is not there."""

    def link(self, name: str, path: str, kind: str, disposition: str) -> str | None:
        """A URL that gives a file to whoever has it, for `LINK_SECONDS`: treat it as a secret.

        `kind` and `disposition` are the headers of the file that it answers with. None if the place
        serves nobody by itself. Sends no request, so the file need not be there.
        """

    def fetch(self, name: str, directory: Path) -> None:
        """Copy a finished export into an empty local directory, the manifest last.

        Each file is compared with the manifest. Raises `GoneError` if the export is not there, or
        is removed meanwhile.
        """

    def remove(self, name: str) -> None:
        """Remove a finished export; no reader ever sees half of it. A missing export is fine.

        Its seal stays for `SEAL_DAYS`, so that neither a repeated request nor a thawed sink
        publishes the id again.
        """

    def sweep(self) -> list[str]:
        """Finish sealed exports and remove leftovers; returns the names of what was removed.

        The files of live sinks are left alone, and so are files of no export.
        """

    def probe(self) -> None:
        """Raise `StateError` if nothing could be written now. Leaves nothing behind."""

    def check(self) -> None:
        """Raise `StateError` if the place cannot be used. Leaves nothing behind.

        A directory is written to, a bucket only read. Costs one flush of a byte or one request, so
        an idle sink can afford it every 20 s.
        """


SEAL_DAYS = 400
"""A slot's export id may be requested again until the next slot. A schedule may be yearly."""


def stop_if(abandoned: Callable[[], bool]) -> None:
    """Raise `StateError` if the caller has abandoned the export."""
    if abandoned():
        raise StateError("the export was given up")


def copy_out(
    content: bytes, where: str, directory: Path, write: Callable[[str, Path], str]
) -> None:
    """Copy the export with that manifest into an empty local directory, the manifest last.

    `write(path, target)` copies one file and returns its SHA-256. Raises `StateError` if a file is
    damaged or `directory` cannot be written.
    """
    try:
        for file in decode(content, where).files:
            target = directory / file.path
            target.parent.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
            if write(file.path, target) != file.sha256:
                raise StateError(f"{where}/{file.path} is damaged")
        (directory / MANIFEST).write_bytes(content)
    except OSError as error:
        raise StateError(f"{directory} cannot be written: {error.strerror or error}") from None


def finished_from(name: str, location: str, content: bytes, order: Order | None = None) -> Finished:
    """The finished export with that manifest. Raises UsageError if the manifest is unknown."""
    manifest = decode(content, f"{location}: manifest.json")
    digest = hashlib.sha256(content).hexdigest()
    return Finished(name, location, manifest, digest, order or order_of(name))


def tell_overtaken(name: str, marks: Sequence[str]) -> None:
    """Log that an export's time precedes that of exports already at the place."""
    if marks:
        _log.warning("export_out_of_order", name=name, count=len(marks))
