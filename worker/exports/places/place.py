"""Where exports are published: what a directory and a bucket have in common.

Several sinks may publish to one place. Each builds an export in a staging directory of its own and
publishes it under a name in which the time of its own cut stands; so for one export id there can
be several attempts. The *seal* decides between them: it is created exclusively, once for each id,
and from then on the export is what the winner has staged. Whoever comes across a seal whose export
is not there yet finishes it, and whoever fails at the seal discards what he has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from worker.errors import StateError
from worker.exports.layout import MANIFEST
from worker.exports.manifest import Manifest, decode
from worker.exports.order import Order, order_of
from worker.exports.places.staging import Staging
from worker.private import DIRECTORY_MODE

_log = structlog.get_logger(__name__)


class GoneError(StateError):
    """The export is not at the place: it has been removed, or never was there."""


class Finished(msgspec.Struct, frozen=True):
    """A finished export: its name at the place, where that is for a person, and its manifest.

    By `order` those that `Place.finished` gives sort, the oldest first.
    """

    name: str
    location: str
    manifest: Manifest
    manifest_sha256: str
    order: Order


Skipped = Callable[[str], object]
"""Told in one line what is called like an export and cannot be read as one, and why."""


def ignore_skipped(_: str) -> None:
    """Nobody is to be told."""


class Place(Protocol):
    """Where finished exports are.

    Every method but `hang` blocks and is to be run in a thread. Each raises `StateError`, one line,
    where the place refuses or cannot be reached.
    """

    def tell(self, tell: Callable[[str | None], object]) -> None:
        """Whom to tell, in one line, that the place is away and waited for; None: it is back.

        From any thread.
        """

    def hang(self) -> str | None:
        """In one line that a call to a disk hangs, which no time-out ends; None: none does."""

    def close(self) -> None:
        """From now on nothing that is away is waited for: calls that wait give up."""

    def find(self, export_id: str) -> Finished | None:
        """The export with that id; one that is sealed and not there yet is finished first."""

    def sealed(self, export_id: str) -> bool:
        """Whether that id has been decided: its export is there, will be, or has been removed."""

    def finished(self, skipped: Skipped = ignore_skipped) -> Iterator[Finished]:
        """All finished exports, the newest first: by the time of its cut, if no clock was wrong.

        Each is read when it is asked for. What is no export is passed over, and `skipped` is told.
        """

    def staging(self, name: str) -> Staging:
        """A local directory, not open yet, in which the export of that name can be built."""

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        """Publish what has been staged, flushed and complete; the seal is the last step but one.

        Returns the export with that id, which is another's if that one was sealed first; then
        nothing of this one is left at the place. Nothing finished is ever overwritten. When
        `abandoned` turns true before the seal, it gives up and raises `StateError`. The caller
        discards the staging afterwards, whatever has happened.

        What is there under a later time was made by a clock that was wrong, or this one is: it is
        marked as older, and that is logged (`worker.exports.order`).
        """

    def fetch(self, name: str, directory: Path) -> None:
        """Copy a finished export into an empty local directory, the manifest last.

        Each file is compared with the manifest. `GoneError` if the export is not there, or is
        removed meanwhile.
        """

    def remove(self, name: str) -> None:
        """Remove a finished export so that nobody ever sees half of it. None is fine as well.

        Its seal stays for `SEAL_DAYS`, so that neither a request that comes again nor a thawed
        sink publishes the id once more.
        """

    def sweep(self) -> list[str]:
        """Finish what is sealed, remove what died before; the names of what was removed.

        What a live sink is writing is left alone. So is what is no export's.
        """

    def probe(self) -> None:
        """Raises `StateError` if nothing could be written now; leaves nothing behind."""


SEAL_DAYS = 400
"""The id of a schedule's slot comes again until the next slot, and a schedule may be yearly."""


def stop_if(abandoned: Callable[[], bool]) -> None:
    """Raises `StateError` when nobody waits for the export any more."""
    if abandoned():
        raise StateError("the export was given up")


def copy_out(
    content: bytes, where: str, directory: Path, write: Callable[[str, Path], str]
) -> None:
    """Copy the export with that manifest into an empty local directory, the manifest last.

    `write(path, target)` copies one of its files and returns the SHA-256. Raises `StateError`.
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
    """The finished export with that manifest; UsageError if it is none that we know."""
    manifest = decode(content, f"{location}: manifest.json")
    digest = hashlib.sha256(content).hexdigest()
    return Finished(name, location, manifest, digest, order or order_of(name))


def tell_overtaken(name: str, marks: Sequence[str]) -> None:
    """Log that an export's time lies before those of exports that are there already."""
    if marks:
        _log.warning("export_out_of_order", name=name, count=len(marks))
