"""Keeps a folder of finished exports up to date.

An export appears in the folder in one step, once each of its files has the SHA-256 that the
manifest lists. A pull that is killed leaves a hidden directory. The next pull goes on with it, and
fetches only the bytes that are missing. The link `latest` names the newest export.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from worker.errors import BrokerUnavailable, StateError
from worker.exports.layout import MANIFEST, id_in
from worker.exports.manifest import MOST_BYTES, ExportedFile, decode
from worker.private import DIRECTORY_MODE, make_private
from worker.pull.server import (
    ExportGone,
    ExportServer,
    NothingToPull,
    Offered,
    Refused,
    problems_of,
)

LATEST: Final = "latest"
_LOCK: Final = ".pull.lock"
_PARTIAL: Final = ".partial"
_LONGEST_CHAIN: Final = 10_000
_TRIES: Final = 5

Advance = Callable[[str, int, int], None]
"""Called with the name of a file, the bytes that are there, and its size."""


def pull(
    server: ExportServer,
    folder: Path,
    bookmark: str | None,
    formats: Sequence[str],
    advance: Advance,
) -> list[str]:
    """Bring the folder up to date; returns the names of the exports that were fetched, in order.

    With a bookmark, the folder gets the whole chain: the last export of the feed with all rows that
    is needed, and every increment after it. Without, it gets the latest export. Raises StateError,
    NothingToPull, BrokerUnavailable and Refused.
    """
    fetched: list[str] = []
    with _locked(folder):
        for removed in range(_TRIES):
            try:
                newest, wanted = _wanted(server, folder, bookmark, formats)
                for offered in wanted:
                    _fetch(server, folder, offered, advance)
                    fetched.append(offered.directory)
            except ExportGone:
                continue  # retention has removed it: the list has changed
            except NothingToPull as error:
                if not removed:
                    raise
                raise NothingToPull(
                    f"what was being fetched has been removed at the server, and now {error}; once"
                    " there is another, the next pull fetches the newest"
                ) from None
            _point_to(folder, newest)
            _sweep(folder)
            return fetched
        raise StateError(f"exports are removed faster than {folder} can fetch them: try again")


def _wanted(
    server: ExportServer, folder: Path, bookmark: str | None, formats: Sequence[str]
) -> tuple[str, list[Offered]]:
    """The newest export, and those that the folder lacks, in the order in which they apply."""
    if bookmark is None:
        latest = _checked(server.latest(formats))
        there = (folder / latest.directory).is_dir()
        return latest.directory, [] if there else [latest]
    newest = ""
    chain: list[Offered] = []
    base: str | None = None
    for offered in server.feed(bookmark, formats):
        if chain and offered.id != base:
            continue  # made beside the chain, by a sink that was replaced
        newest = newest or _checked(offered).directory
        if (folder / _checked(offered).directory).is_dir():
            return newest, chain[::-1]
        chain.append(offered)
        base = offered.base
        if base is None:
            return newest, chain[::-1]
        if len(chain) >= _LONGEST_CHAIN:
            break
    if not chain:
        raise NothingToPull(f"the server has no export of the feed {bookmark}")
    raise NothingToPull(
        f"export {chain[-1].id} of the feed {bookmark} goes on from {base}, which the server does"
        " not have any more, nor this folder: ask for a full export"
    )


def _checked(offered: Offered) -> Offered:
    """The same, once its name is that of an export: it becomes a path."""
    if id_in(offered.directory) != offered.id:
        raise Refused("the server lists an export under a name that no export has")
    return offered


def _fetch(server: ExportServer, folder: Path, offered: Offered, advance: Advance) -> None:
    """Fetch an export into a hidden directory, and rename it once it is whole."""
    partial = folder / f".{offered.directory}{_PARTIAL}"
    path = f"/v1/exports/{offered.directory}"
    with _writing(folder):
        partial.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        manifest = _manifest(server, path, offered, partial / MANIFEST)
        for file in decode(manifest, "manifest.json").files:
            if "\0" in file.path:
                raise StateError("the manifest lists a file whose name no system takes")
            target = partial / file.path
            target.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
            _file(server, f"{path}/files/{quote(file.path)}", file, target, advance)
        for directory in {partial, *(each.parent for each in partial.rglob("*"))}:
            _flush(directory)
        partial.rename(folder / offered.directory)
        _flush(folder)


def _manifest(server: ExportServer, path: str, offered: Offered, target: Path) -> bytes:
    """The manifest: that of an earlier pull, or fetched."""
    with suppress(FileNotFoundError), target.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
        if hashlib.sha256(content).hexdigest() == offered.manifest_sha256:
            os.fsync(file.fileno())  # the earlier pull may have been killed before it did so
            return content
    content = b""
    with server.open(path, 0, offered.manifest_sha256) as (_, chunks), problems_of(path):
        for chunk in chunks:
            content += chunk
            if len(content) > MOST_BYTES:
                break
    if hashlib.sha256(content).hexdigest() != offered.manifest_sha256:
        raise StateError(f"the manifest of {offered.directory} is damaged: try again")
    with target.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return content


def _file(
    server: ExportServer, path: str, file: ExportedFile, target: Path, advance: Advance
) -> None:
    """Fetch the bytes of a file that are missing. Raises StateError if its SHA-256 is wrong."""
    for _ in range(2):
        with target.open("ab+") as kept:
            digest, size = _hashed(kept)
            if size < file.bytes:
                digest, size = _rest(server, path, file, kept, digest, size, advance)
            if size == file.bytes and digest.hexdigest() == file.sha256:
                kept.flush()
                os.fsync(kept.fileno())
                advance(file.path, size, size)
                return
        target.unlink()  # what was there was not of this file: begin anew
    raise StateError(f"{file.path} is damaged on its way or at the server: try again")


def _hashed(kept: Any) -> tuple[Any, int]:
    """The SHA-256 of what is there, and its size."""
    kept.seek(0)
    digest = hashlib.file_digest(kept, "sha256")
    return digest, kept.tell()


def _rest(
    server: ExportServer,
    path: str,
    file: ExportedFile,
    kept: Any,
    digest: Any,
    size: int,
    advance: Advance,
) -> tuple[Any, int]:
    """Append the bytes from `size` on, as far as the connection goes: it is tried again."""
    why = "the server has sent less than it said; try again"
    for _ in range(_TRIES):
        try:
            with server.open(path, size, file.sha256) as (resumes, chunks), problems_of(path):
                if size and not resumes:
                    kept.truncate(0)
                    digest, size = hashlib.sha256(), 0
                for chunk in chunks:
                    kept.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    advance(file.path, size, file.bytes)
                    if size > file.bytes:
                        return digest, size
        except BrokerUnavailable as error:
            why = str(error)
        if size >= file.bytes:
            return digest, size
    raise BrokerUnavailable(f"{file.path} breaks off at {size} of {file.bytes} bytes: {why}")


def _point_to(folder: Path, name: str) -> None:
    """Have the link `latest` name an export."""
    fresh = folder / f".{LATEST}"
    with _writing(folder):
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)
        fresh.rename(folder / LATEST)
        _flush(folder)


def _sweep(folder: Path) -> None:
    """Remove what earlier pulls have left of exports that are not wanted any more."""
    for left in folder.glob(f".*{_PARTIAL}"):
        if id_in(left.name[1 : -len(_PARTIAL)]) is not None:
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: one pull at a time. Raises StateError."""
    with _writing(folder):
        make_private(folder)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        with _writing(folder):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(f"another pull is at work in {folder}: wait for it") from None
        yield
    finally:
        os.close(lock)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StateError(f"{folder} cannot be written: {reason}") from None


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
