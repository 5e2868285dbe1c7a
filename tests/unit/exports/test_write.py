"""Writing and verifying whole exports."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec
import pytest

from tests.unit.export_kit import as_written, export_to, feedback, metadata_of, spool_of, user
from worker.errors import StateError, UsageError
from worker.exports import manifest as manifests
from worker.exports.layout import Format
from worker.exports.manifest import ExportedFile, Options, Origin, encode, read_manifest
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.hangs import HANG_SECONDS
from worker.exports.spool import Spool, read_blocks
from worker.exports.verify import verify
from worker.exports.write import _Steps, total_steps, write_export

TABLES = {"users": [user(), user(first_name="=1")], "feedback": [feedback()]}
NAME = "20251122T103000Z_550e8400-e29b-41d4-a716-446655440000"


def names_in(directory: Path) -> list[str]:
    """What is to be seen, staging and seals aside."""
    return sorted(path.name for path in directory.glob("[!.]*"))


def files_below(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        (
            ("csv",),
            [
                "buddy_export_2025-11-22/feedback.csv",
                "buddy_export_2025-11-22/metadata.json",
                "buddy_export_2025-11-22/users.csv",
            ],
        ),
        (("json",), ["buddy_export_2025-11-22.json"]),
        (("xlsx",), ["buddy_export_2025-11-22.xlsx"]),
        (("json", "xlsx"), ["buddy_export_2025-11-22.json", "buddy_export_2025-11-22.xlsx"]),
    ],
)
def test_the_layout(tmp_path: Path, formats: tuple[Format, ...], files: list[str]) -> None:
    directory = export_to(tmp_path, TABLES, *formats)
    assert directory == tmp_path / "exports" / NAME
    assert names_in(tmp_path / "exports") == [NAME]
    assert files_below(directory) == sorted([*files, "SHA256SUMS", "manifest.json"])
    for path in [directory, *directory.rglob("*")]:
        assert not path.stat().st_mode & 0o027


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    origin = Origin(complete=False, left_out={"feedback": {"user_gone": 3}})
    directory = export_to(tmp_path, TABLES, origin=origin)
    manifest = read_manifest(directory)
    assert manifest.record_counts == {"users": 2, "feedback": 1}
    assert manifest.formula_cells == {"users": 1, "feedback": 0}
    assert not manifest.complete
    assert manifest.left_out == {"feedback": {"user_gone": 3}}
    assert {file.path for file in manifest.files} | {"manifest.json"} == set(files_below(directory))
    for file in manifest.files:
        content = (directory / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [file.rows for file in manifest.files] == [0, 2, 1, 3, 3, 0]
    assert verify(directory).ok


def sha256sum(directory: Path) -> subprocess.CompletedProcess[str]:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_sha256sum_checks_every_file_but_those_that_name_the_others(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES)
    checked = sha256sum(directory)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    lines = (directory / "SHA256SUMS").read_text().splitlines()
    named = [line.split("  ", 1)[1] for line in lines]
    assert {*named, "SHA256SUMS", "manifest.json"} == set(files_below(directory))
    with (directory / named[-1]).open("ab") as file:
        file.write(b"!")
    checked = sha256sum(directory)
    assert (checked.returncode, checked.stdout) == (1, f"{named[-1]}: FAILED\n")


def test_sums_that_say_something_else_than_the_manifest_are_found(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES, "json")
    sums = directory / "SHA256SUMS"
    content = sums.read_bytes()
    sums.write_bytes(content[1:2] + content[:1] + content[2:])
    assert verify(directory).problems == (
        "SHA256SUMS: the content has changed (SHA-256)",
        "SHA256SUMS: does not list the files of the manifest with their SHA-256",
    )
    manifest = read_manifest(directory)
    told = ExportedFile(
        "SHA256SUMS", len(content), 0, hashlib.sha256(sums.read_bytes()).hexdigest()
    )
    files = (*manifest.files[:-1], told)
    whole = msgspec.structs.replace(manifest, files=files)
    (directory / "manifest.json").write_bytes(encode(whole))
    assert verify(directory).problems == (
        "SHA256SUMS: does not list the files of the manifest with their SHA-256",
    )


def test_an_older_export_has_no_sums_and_is_valid(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES)
    manifest = read_manifest(directory)
    (directory / "SHA256SUMS").unlink()
    older = msgspec.structs.replace(manifest, files=manifest.files[:-1])
    (directory / "manifest.json").write_bytes(encode(older))
    assert verify(directory).problems == ()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (export_to(tmp_path / name, TABLES) for name in "ab")
    for name in files_below(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_no_rows_and_no_entities(tmp_path: Path) -> None:
    nothing: dict[str, list[bytes]] = {}
    assert verify(export_to(tmp_path / "a", {"users": []})).problems == ()
    assert verify(export_to(tmp_path / "b", nothing)).problems == ()


def test_progress_counts_each_row_once_a_format(tmp_path: Path) -> None:
    steps: list[int] = []
    export_to(tmp_path, TABLES, progress=steps.append)
    options = Options(entities=("users", "feedback"), formats=("csv", "json", "xlsx"))
    assert sum(steps) == total_steps(metadata_of(TABLES), options) == 9
    assert min(steps) > 0


def test_a_finished_export_is_never_overwritten(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES)
    before = (directory / "manifest.json").read_bytes()
    assert export_to(tmp_path, {"users": []}) == directory, "the first one under that id"
    assert (directory / "manifest.json").read_bytes() == before
    assert names_in(tmp_path / "exports") == [NAME]


def test_the_hash_of_the_manifest_is_told_before_anything_is_published(tmp_path: Path) -> None:
    told: list[tuple[str, list[str]]] = []
    directory = export_to(
        tmp_path,
        TABLES,
        on_written=lambda sha256: told.append((sha256, names_in(tmp_path / "exports"))),
    )
    content = (directory / "manifest.json").read_bytes()
    assert told == [(hashlib.sha256(content).hexdigest(), [])]


def test_rows_that_do_not_match_the_counts_leave_nothing_behind(tmp_path: Path) -> None:
    spool = spool_of(tmp_path / "spool", {"users": [user()]})
    options = Options(entities=("users",), formats=("csv",))
    metadata = metadata_of({"users": [b"", b""]})
    with pytest.raises(StateError, match="1 rows instead of 2"):
        asyncio.run(write_export(DirectoryPlace(tmp_path / "exports"), spool, metadata, options))
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_row_that_is_not_canonical_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="canonical"):
        export_to(tmp_path, {"users": [b'{"id":1}']})
    assert list((tmp_path / "exports").iterdir()) == []


def test_disagreement_on_entities_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same entities"):
        asyncio.run(
            write_export(
                DirectoryPlace(tmp_path),
                Spool({}),
                metadata_of(TABLES),
                Options(entities=(), formats=()),
            )
        )


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "exports").touch()
    with pytest.raises(StateError, match="cannot write an export"):
        export_to(tmp_path, TABLES)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.exports.write.os.fsync", full)
    with pytest.raises(StateError, match="No space left"):
        export_to(tmp_path, TABLES)
    assert list((tmp_path / "exports").iterdir()) == []


async def test_cancelling_leaves_nothing_behind(tmp_path: Path) -> None:
    reached = asyncio.Event()
    spool = spool_of(tmp_path / "spool", TABLES)
    options = Options(entities=tuple(TABLES), formats=("csv", "json"))
    metadata = metadata_of(TABLES)
    task = asyncio.create_task(
        write_export(
            DirectoryPlace(tmp_path / "exports"),
            spool,
            metadata,
            options,
            progress=lambda _: reached.set(),
        )
    )
    await reached.wait()
    assert len(list((tmp_path / "exports").iterdir())) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_disk_that_is_slow_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes nearly as long as a call that hangs."""
    now = 0.0
    step = _Steps.next

    def slow(steps: _Steps[object]) -> bytes:
        nonlocal now
        now += HANG_SECONDS - 1
        return step(steps)

    monkeypatch.setattr(_Steps, "next", slow)
    tables = {"users": [user()] * 10_000}
    place = DirectoryPlace(tmp_path / "exports", steady=lambda: now)
    hangs: list[str | None] = []
    asyncio.run(
        write_export(
            place,
            spool_of(tmp_path / "spool", tables),
            metadata_of(tables),
            Options(entities=("users",), formats=("csv",)),
            progress=lambda _: hangs.append(place.hang()),
        )
    )
    assert len(hangs) > 1
    assert set(hangs) == {None}


def test_small_chunks_are_held_back_until_there_is_a_mebibyte() -> None:
    def chunks() -> Generator[bytes, None, str]:
        yield from [b"a" * 700_000, b"", b"b" * 700_000, b"c", *[b""] * 8]
        return "done"

    steps: _Steps[str] = _Steps(chunks())
    sizes = []
    while not steps.done:
        sizes.append(len(steps.next()))
    assert sizes == [1_400_000, 0, 1]
    assert steps.outcome == "done"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_spool_files_are_read_in_blocks(tmp_path: Path, size: int) -> None:
    rows = [b"a", b"", b"ccc", b"d" * 20, b"e"]
    path = tmp_path / "spool"
    for end in (b"\n", b""):
        path.write_bytes(b"\n".join(rows) + end)
        blocks = list(read_blocks(as_written(path), size))
        assert [row for block in blocks for row in block] == rows
        assert all(blocks)


@pytest.mark.parametrize("at", [0, 5, -1])
def test_a_byte_that_the_disk_has_changed_is_no_row(tmp_path: Path, at: int) -> None:
    path = tmp_path / "spool"
    path.write_bytes(b"one row\nanother row\n")
    spooled, content = as_written(path), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(StateError, match="does not hold what was written"):
        list(read_blocks(spooled, 4))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"Smith", b"Smitt", 1) if b"Smith" in content else content[::-1]
    )


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        "buddy_export_2025-11-22/users.csv",
        "buddy_export_2025-11-22/metadata.json",
        "buddy_export_2025-11-22.json",
        "buddy_export_2025-11-22.xlsx",
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    directory = export_to(tmp_path, TABLES)
    damage(directory / name)
    found = verify(directory)
    assert not found.ok
    assert all(problem.startswith(name) for problem in found.problems)


def test_a_file_with_other_rows_than_the_manifest_says_is_found(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES)
    for name in ("buddy_export_2025-11-22.json", "buddy_export_2025-11-22.xlsx"):
        shutil.copy(export_to(tmp_path / name, {"users": [user()]}) / name, directory / name)
    (directory / "extra").touch()
    problems = verify(directory).problems
    assert "extra: is not in the manifest" in problems
    for name in ("buddy_export_2025-11-22.json", "buddy_export_2025-11-22.xlsx"):
        assert f"{name}: 1 rows instead of 3" in problems
        assert f"{name}: has no feedback" in problems


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff"])
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="finished export"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UsageError, match="not the manifest"):
        verify(tmp_path)


def test_a_manifest_that_is_too_large_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = export_to(tmp_path, TABLES, "json")
    path = directory / "manifest.json"
    known = read_manifest(directory)
    monkeypatch.setattr(manifests, "MOST_BYTES", path.stat().st_size)
    assert manifests.encode(read_manifest(directory)) == path.read_bytes()
    with path.open("ab") as file:
        file.write(b" ")
    for read in (verify, lambda _: manifests.decode(path.read_bytes(), str(path))):
        with pytest.raises(UsageError, match=r"manifest\.json: not the manifest .*: it is larger"):
            read(directory)
    monkeypatch.setattr(manifests, "MOST_BYTES", 1000)
    with pytest.raises(
        StateError, match=r"would be larger than 0 MiB, as 0 cells .* had to be cut"
    ):
        manifests.encode(known)


@pytest.mark.parametrize(("field", "value"), [("format", 2), ("path", "../x"), ("path", "/x")])
def test_a_manifest_that_we_do_not_know(tmp_path: Path, field: str, value: object) -> None:
    directory = export_to(tmp_path, TABLES, "json")
    manifest = json.loads((directory / "manifest.json").read_bytes())
    (manifest if field == "format" else manifest["files"][0])[field] = value
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=r"manifest format 2|outside"):
        verify(directory)
