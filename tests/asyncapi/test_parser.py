"""The official AsyncAPI parser reads our document. Skips where there is no Node.js with npm."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

import pytest

from tests.paths import ROOT

HERE: Final = ROOT / "tests" / "asyncapi"
VERSION: Final = "3.6.6"
SHA512: Final = (
    "0e9a44dce4ad6a3b7a80773e46c55ff55c51c16f560026a01e716f90e30be6b6"
    "46c12f615f1b45613c67b07de61cf4601e89b4ac294cb3a0e96e3358eb9639e0"
)
"""Of the package, as npm has it."""
DOCUMENT: Final = (ROOT / "schemas" / "asyncapi.json").read_text("ascii")
WARNING: Final = 1
"""Diagnostics: 0 error, 1 warning, 2 information, 3 hint."""


@pytest.fixture(scope="module")
def bundle() -> Path:
    """The parser in one file, fetched once."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no official AsyncAPI parser: Node.js and npm are needed")
    folder = ROOT / ".cache" / f"asyncapi-parser-{VERSION}"
    packed = folder / f"asyncapi-parser-{VERSION}.tgz"
    if not packed.exists():
        folder.mkdir(parents=True, exist_ok=True)
        name = f"@asyncapi/parser@{VERSION}"
        fetch = [npm, "pack", "--silent", "--fetch-retries=0", "--fetch-timeout=20000", name]
        if subprocess.run(fetch, cwd=folder, capture_output=True, check=False).returncode:
            pytest.skip("no official AsyncAPI parser: npm cannot fetch it")
    assert hashlib.sha512(packed.read_bytes()).hexdigest() == SHA512
    with tarfile.open(packed) as archive:
        archive.extract("package/browser/index.js", folder, filter="data")
    return folder / "package" / "browser" / "index.js"


def test_the_official_parser_reads_the_document_and_no_broken_one(bundle: Path) -> None:
    described = json.loads(DOCUMENT)
    broken = json.loads(DOCUMENT)
    del broken["channels"]["exports"]["messages"]["Announcement"]
    command = ["node", str(HERE / "parse.cjs"), str(bundle)]
    texts = json.dumps([DOCUMENT, json.dumps(broken)]).encode()
    done = subprocess.run(command, input=texts, capture_output=True, check=True)
    good, refused = json.loads(done.stdout)
    assert not [d for d in good["diagnostics"] if d["severity"] <= WARNING]
    assert good["found"] == {
        "channels": len(described["channels"]),
        "operations": len(described["operations"]),
        "messages": len(described["components"]["messages"]),
    }
    assert refused["found"] is None
