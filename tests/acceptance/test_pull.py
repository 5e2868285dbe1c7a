"""`buddy pull` beside `buddy serve`: what downstream runs from cron, killed at any time."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from random import Random

import msgspec
import pytest

from tests.acceptance.kit import Another, Buddy, Service, eventually
from tests.unit.place_kit import DATA, FIRST, SECOND, never, published, staged
from tests.unit.rows_kit import user
from worker.exports.manifest import read_manifest
from worker.exports.places.directory import DirectoryPlace
from worker.exports.verify import verify

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

MIB = 1024 * 1024


def address_of(service: Service) -> str:
    service.wait_for("http_started")
    (started,) = service.logged("http_started")
    return f"http://127.0.0.1:{started['port']}"


@pytest.fixture
def serving(local: Buddy) -> str:
    """The address of the API over an empty log and the exports of `local`."""
    local.settings["http_port"] = 0
    return address_of(local.start("serve"))


def place_of(buddy: Buddy) -> DirectoryPlace:
    return DirectoryPlace(buddy.directory / "exports")


def check(directory: Path) -> None:
    """Every file has the SHA-256 of the manifest, and there is no other one."""
    manifest = read_manifest(directory)
    found = {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == {file.path: file.sha256 for file in manifest.files}


def entries(folder: Path) -> list[str]:
    """What a reader of the folder sees."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_killed_again_and_again_it_ends_with_the_same_files(local: Buddy, serving: str) -> None:
    large = Random(7).randbytes(192 * MIB)
    place = place_of(local)
    place.publish(staged(place, FIRST, "1", {"large.bin": large}), never)
    folder = local.directory / "pulled"
    partial = folder / f".{FIRST}.partial" / "large.bin"

    def size() -> int:
        return partial.stat().st_size if partial.exists() else 0

    sizes = [0]
    for _ in range(5):
        service = local.start("pull", serving, folder)
        eventually(lambda: size() > sizes[-1], "bytes come")
        service.kill()
        assert entries(folder) == [], "nothing half"
        sizes.append(size())
        assert sizes[-1] < len(large), "killed in the middle"
    assert sizes == sorted(sizes), "each goes on behind the one before"
    done = local.run("pull", serving, folder, "--json").succeeded().json
    assert done == {"fetched": [FIRST], "latest": str((folder / FIRST).resolve())}
    assert entries(folder) == [FIRST, "latest"]
    check(folder / "latest")
    assert local.run("pull", serving, folder, "--json").succeeded().json["fetched"] == []
    left = [path.name for path in folder.iterdir() if path.name.endswith(".partial")]
    assert left == []


def test_a_feed_is_fetched_with_all_of_its_increments(another: Another) -> None:
    buddy = another(grace_seconds=1, http_port=0)
    buddy.start("run").ready()
    address = address_of(buddy.start("serve"))
    folder, late = buddy.directory / "pulled", buddy.directory / "late"
    names = []
    for number in range(3):
        rows = b"\n".join(value for _, value in map(user, range(number * 10, number * 10 + 10)))
        buddy.run("send", "-", "--entity", "users", "--wait", input=rows).succeeded()
        names.append(buddy.export("--incremental", "feed").name)
        fetched = buddy.run("pull", address, folder, "--bookmark", "feed", "--json").json
        assert fetched["fetched"] == names[-1:]
        assert Path(fetched["latest"]).name == names[-1]
    pulled = buddy.run("pull", address, late, "--bookmark", "feed", "--json").succeeded().json
    assert pulled["fetched"] == names, "the whole chain, in the order in which it applies"
    for name in names:
        check(late / name)
    assert verify(late / names[0]).problems == ()
    shutil.rmtree(late / names[0])
    again = buddy.run("pull", address, late, "--bookmark", "feed").succeeded()
    assert "up to date" in again.out


def test_a_newer_export_moves_the_link(local: Buddy, serving: str) -> None:
    folder = local.directory / "pulled"
    published(place_of(local), FIRST, "old")
    local.run("pull", serving, folder).succeeded()
    other = re.sub("_.*", "_11111111-1111-4111-8111-111111111111", SECOND)
    published(place_of(local), other, "new")
    (folder / "latest").unlink()
    (folder / "latest").symlink_to("nowhere")  # as if somebody had moved it
    local.run("pull", serving, folder).succeeded()
    assert (folder / "latest").readlink() == Path(other)
    assert entries(folder) == sorted([FIRST, other, "latest"]), "earlier ones stay"


def test_what_cannot_be_pulled_is_one_line(local: Buddy, serving: str, tmp_path: Path) -> None:
    folder = local.directory / "pulled"
    assert "no such export" in local.run("pull", serving, folder).complained(1)
    assert "no export of the feed" in local.run(
        "pull", serving, folder, "--bookmark", "x"
    ).complained(1)
    gone = "http://127.0.0.1:9"
    assert "cannot be reached" in local.run("pull", gone, folder).complained(4)
    login = f"http://{'me:secret'}@127.0.0.1"
    for url in ("ftp://x", "nowhere", login, "http://[", "http://x?y"):
        line = local.run("pull", url, folder).complained(2)
        assert "secret" not in line
    file = tmp_path / "file"
    file.write_text("")
    published(place_of(local), FIRST)
    assert "cannot be written" in local.run("pull", serving, file).complained(6)
    secrets = tmp_path / "token"
    secrets.write_text("t" * 40)
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("")
    guarded = address_of(local.start("serve", env={"BUDDY_HTTP_TOKENS_FILE": str(tokens)}))
    line = local.run("pull", guarded, folder, "--token-file", secrets).complained(3)
    assert "401" in line
    assert "t" * 40 not in line


def test_a_damaged_file_never_appears(local: Buddy, serving: str) -> None:
    name = published(place_of(local), FIRST, "12345")
    damaged = local.directory / "exports" / name / DATA / "users.csv"
    damaged.chmod(0o640)
    folder = local.directory / "pulled"
    for content in ("12346", "123", "", "123456"):
        damaged.write_text(content)
        assert "damaged" in local.run("pull", serving, folder).complained(6)
        assert entries(folder) == []
    damaged.unlink()
    assert "damaged" in local.run("pull", serving, folder).complained(6)
    damaged.write_text("12345")
    local.run("pull", serving, folder).succeeded()
    assert msgspec.json.decode((folder / name / "manifest.json").read_bytes())
    check(folder / name)
