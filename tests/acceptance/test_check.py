"""`buddy check` gives exactly the verdicts of the contract, and `buddy send` the same ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from schemas import ENTITIES
from tests.acceptance.kit import Buddy
from tests.acceptance.material import expected, sendable, split, write
from tests.paths import ROOT

pytestmark = pytest.mark.acceptance

CASES = ROOT / "tests" / "cases" / "files"
FOLDERS = sorted(path.name for path in CASES.iterdir() if (path / "expected.json").exists())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_case(local: Buddy, folder: str) -> None:
    case = json.loads((CASES / folder / "expected.json").read_bytes())
    files = sorted((CASES / folder).glob("*.ndjson"))
    outputs = ("--accepted", "rows", "--rejected", "rejected", "--warnings", "warnings")
    checked = local.run("check", *files, *outputs, "--json")

    assert checked.code == case["exit_code"], f"{checked}"
    assert not checked.err
    accepted = {e: n for e, n in checked.json["accepted"].items() if n}
    assert accepted == case["accepted"]
    rows = {p.stem: len(lines(p)) for p in (local.directory / "rows").iterdir()}
    assert rows == case["accepted"]
    rejections = [
        {
            "path": Path(r["source"]["path"]).name,
            "line": r["source"]["line"],
            "entity": r["entity"],
            "codes": [v["code"] for v in r["violations"]],
            "fields": [v["field"] for v in r["violations"]],
        }
        for r in lines(local.directory / "rejected")
    ]
    assert rejections == case["rejected"]
    warnings = [
        {
            "path": Path(w["source"]["path"]).name,
            "line": w["source"]["line"],
            "code": v["code"],
            "field": v["field"],
        }
        for w in lines(local.directory / "warnings")
        for v in w["violations"]
    ]
    assert warnings == case["warnings"]


def test_without_options_it_says_what_is_wrong_where(local: Buddy) -> None:
    checked = local.run("check", *sorted((CASES / "duplicate_email").glob("*.ndjson")))
    assert checked.code == 1
    assert "duplicate_email" in checked.out
    assert re.search(r"Wrong in \S+users\.ndjson\b", checked.out)
    assert re.search(r"│ 2 +│ email +│ duplicate_email", checked.out)
    assert "3 accepted, 1 rejected." in checked.out
    clean = local.run("check", *sorted((CASES / "all_eight_clean").glob("*.ndjson")))
    clean.succeeded()
    assert " 0 rejected." in clean.out


def test_its_output_can_be_checked_again(local: Buddy, tmp_path: Path) -> None:
    """What is accepted is accepted again, and comes out the same."""
    records, _ = split(sendable(1_000, seed=5))
    folder = write(tmp_path / "in", records)
    local.run("check", folder, "--accepted", "rows", "--json")
    local.run("check", "rows", "--accepted", "again", "--json").succeeded()
    for path in (local.directory / "rows").iterdir():
        assert (local.directory / "again" / path.name).read_bytes() == path.read_bytes()
    assert len(list((local.directory / "rows").iterdir())) == len(ENTITIES)


def test_send_gives_the_same_verdicts(local: Buddy, tmp_path: Path) -> None:
    buddy = local.elsewhere("here", grace_seconds=1)
    records, _ = split(sendable(1_500, seed=9, bad_share=0.2))
    folder = write(tmp_path / "in", records)
    checked = buddy.run("check", folder, "--json")
    service = buddy.start("run").ready()
    sent = buddy.run("send", folder, "--wait", "--json")
    service.stop().succeeded()
    assert checked.code == sent.code == 1
    assert sent.json["violations"] == checked.json["codes"]
    assert sent.json["accepted"] == sum(checked.json["accepted"].values())
    assert sent.json["rejected"] == sum(checked.json["rejected"].values())
    assert sent.json["sent"] == len(records)
    codes = {
        f"{entity}.{code}"
        for (entity, found) in expected(records, timely=True)
        for code in found
    }  # fmt: skip
    assert checked.json["codes"].keys() == codes
