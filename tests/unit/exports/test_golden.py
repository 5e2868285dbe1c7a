"""A small export in every format, byte for byte; see tests/golden/README.md."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from schemas import ENTITIES
from tests.unit.export_kit import export_to, same
from tests.unit.exports.golden_kit import GOLDEN, golden_rows, short
from worker import __version__
from worker.exports.manifest import Cut, Origin
from worker.exports.verify import verify
from worker.files import expand, read

ORIGIN = Origin(
    cut=Cut(accepted={"users": {0: 5, 1: 4}}, judged={"users": {0: 7, 1: 5}}),
    left_out={"feedback": {"user_gone": 2}},
)
RENEW = bool(os.environ.get("BUDDY_RENEW_GOLDEN"))
"""Asked here, since tests themselves see no variable of ours."""


def texts_of(directory: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".xlsx":
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    text = archive.read(member).decode()
                    texts[f"{name}/{member}"] = text.replace("<row ", "\n<row ")
        elif path.is_file():
            texts[name] = path.read_bytes().decode()
    # What another zlib packs has another size and hash, and so has what lists that hash.
    texts["SHA256SUMS"] = re.sub(r"\w+(?=  .*\.xlsx\n)", "…", texts["SHA256SUMS"])
    texts["manifest.json"] = re.sub(
        r'(SHA256SUMS",[^}]*"sha256": )"\w+"', r'\1"…"', texts["manifest.json"]
    )
    texts["manifest.json"] = re.sub(
        r'(\.xlsx",\s*"bytes": )\d+(,\s*"rows": \d+,\s*"sha256": )"\w+"',
        r'\1"…"\2"…"',
        texts["manifest.json"],
    )
    texts["manifest.json"] = texts["manifest.json"].replace(__version__, "0.0.0")
    return {name: short(text) for name, text in texts.items()}


def test_the_export_is_as_it_always_was(tmp_path: Path) -> None:
    directory = export_to(tmp_path, golden_rows(), origin=ORIGIN)
    assert directory.name == "20251122T103000Z_550e8400-e29b-41d4-a716-446655440000"
    texts = texts_of(directory)
    expected = GOLDEN / "expected"
    if RENEW:
        for name, text in texts.items():
            (expected / name).parent.mkdir(parents=True, exist_ok=True)
            (expected / name).write_bytes(text.encode())
    there = {p.relative_to(expected).as_posix(): p for p in expected.rglob("*") if p.is_file()}
    assert sorted(texts) == sorted(there)
    for name, path in there.items():
        assert texts[name] == path.read_bytes().decode(), name


def test_the_export_can_be_verified_and_read_in_every_format(tmp_path: Path) -> None:
    rows = golden_rows()
    directory = export_to(tmp_path, rows)
    assert verify(directory).problems == ()
    folder = directory / "buddy_export_2025-11-22"
    for path in (folder, folder.with_suffix(".json"), folder.with_suffix(".xlsx")):
        read_rows: dict[str, list[bytes]] = {name: [] for name in rows}
        for source in expand([path], None):
            for record in read(source.path, source.entity):
                read_rows[record.entity].append(record.value)
        for name, entity in ENTITIES.items():
            assert len(read_rows[name]) == len(rows[name])
            for before, after in zip(rows[name], read_rows[name], strict=True):
                cut = path.suffix == ".xlsx" and len(before) > 32_767
                assert same(entity, before, after) != cut
