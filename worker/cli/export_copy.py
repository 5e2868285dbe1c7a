"""`buddy export --out`: copies a finished export from the place where the sink published it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from worker.cli.connect_place import place_of
from worker.cli.console import notices
from worker.cli.settings import Settings
from worker.errors import BuddyError, StateError, UsageError
from worker.exports.layout import id_in
from worker.exports.places.place import ExportPlace, GoneError
from worker.sink.requests import Announcement

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def room_for(out: Path) -> Iterator[Path]:
    """An empty directory beside `out`, for `copy` to rename to `out`; else removed at the end.

    Created before the request for an export, the directory proves that `out` can be created. Until
    the end, SIGTERM and SIGHUP remove it and end the program with exit code 128 + n. A second
    signal ends the program without removing it. Raises UsageError and StateError.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out} exists: name a directory that does not")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no directory: make it, or name another one with --out")
    room = out.with_name(f".{out.name}.copying")
    with _ended_in_order():
        try:
            _make(room, out)
            yield room
        finally:
            shutil.rmtree(room, ignore_errors=True)


def copy(room: Path, out: Path, answer: Announcement, places: Iterator[ExportPlace]) -> None:
    """Copy a finished export through `room`, from the first of `places` that has it.

    The copy appears at `out` in one step, as the export itself did. Raises StateError and
    ConfigurationError, which say how to copy the same export again: no failure needs another one.
    """
    again = f"repeat with --id {answer.request_id} to copy it, which makes no other export"
    try:
        _fetch(places, answer, room, out)
        try:
            room.rename(out)
        except OSError as error:
            raise _unwritable(out, error) from None
    except GoneError as error:
        raise StateError(
            f"{error}: if the sink runs elsewhere, name its place as it is seen from here with "
            f"--exports, and {again}; one that was removed (keep_exports, keep_days) stays removed"
        ) from None
    except BuddyError as error:
        where = f", in {answer.location}" if answer.location else ""
        raise type(error)(f"{error}; the export itself is finished{where}: {again}") from None


def places_of(
    answer: Announcement, settings: Settings, environment: Mapping[str, str], patience: float
) -> Iterator[ExportPlace]:
    """The places to look for the export: the announced place, then the place of the settings.

    A sink in a container or on another machine announces its own path of the directory. The
    settings may name the path from here. Raises ConfigurationError, and StateError if the
    announcement names no place.
    """
    name = answer.directory or ""
    location = answer.location or ""
    root = location.removesuffix(f"/{name}")
    if id_in(name) != answer.id or root == location:
        raise StateError("the sink announced no place of the export")
    notice = notices()
    announced = msgspec.structs.replace(settings, exports=root or "/")
    for there in (announced, settings):
        place = place_of(there, environment, patience)
        place.tell(lambda away: None if away is None else notice(f"{away} Trying again ..."))
        yield place


def _fetch(places: Iterator[ExportPlace], answer: Announcement, room: Path, out: Path) -> None:
    missing: list[GoneError] = []
    for place in places:
        try:
            place.fetch(answer.directory or "", room)
        except GoneError as error:
            missing.append(error)
            _make(room, out)
        else:
            return
    raise missing[0]


def _make(room: Path, out: Path) -> None:
    """Create the directory empty, without remains of an earlier copy that was killed."""
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(room)
        room.mkdir()
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> StateError:
    return StateError(f"{out} cannot be written: {error.strerror or error}")


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit within this context, unless they are ignored."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends at once
        sys.exit(128 + number)

    taken = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
