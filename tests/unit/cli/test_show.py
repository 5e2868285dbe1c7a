"""`buddy rejections show`: a rejection and its original, masked unless a setting allows more."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.embedded_kit import opened
from tests.unit.rows_kit import uuid
from worker.cli.main import run
from worker.core.decode import Invalid
from worker.core.rejection import reject
from worker.core.topics import Names
from worker.core.violations import Code, Violation
from worker.desk.masking import Masked, masked
from worker.stream import Message, ProducerRecord

NAMES = Names()
NOW = 1_764_547_200_000


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BUDDY_BROKER", f"embedded:{tmp_path / 'broker'}")


def rejected(
    tmp_path: Path,
    record: bytes | None,
    *violations: tuple[Code, str],
    entity: str = "users",
    key: str = "k",
) -> None:
    """Put a rejection of `in.<entity>/3/17` into its topic, whose first it is."""
    assert run(["topics", "create", "--partitions", "1"]) == 0
    found = tuple(Violation(code, field, "expected this", "error") for code, field in violations)
    headers = (("buddy-producer", b"import"),)
    source = Message(NAMES.input(entity), 3, 17, NOW, b"k", record, headers)
    malformed = any(code is Code.MALFORMED_RECORD for code, _ in violations)
    invalid = Invalid(key.encode(), found, malformed=malformed)
    value, _ = reject(entity, source, invalid, NOW, 1 << 20)

    async def fill() -> None:
        async with opened(tmp_path / "broker") as broker:
            await broker.publish([ProducerRecord(NAMES.rejected(entity), b"k", value)])

    asyncio.run(fill())


@pytest.mark.parametrize(
    "coordinate", ["in.users/3/17", "buddy.in.users/3/17", "rejected.users/0/0"]
)
def test_the_violations_stand_beside_the_masked_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinate: str
) -> None:
    record = {"role": "mentor", "first_name": "Ola", "age": 41, "tags": ["x", "y"], "more": {}}
    text = json.dumps(record).encode()
    rejected(tmp_path, text, (Code.INVALID_ENUM, "role"), (Code.MISSING_REQUIRED_FIELD, "id"))
    capsys.readouterr()
    assert run(["rejections", "show", coordinate]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2025-12-01 00:00:00  buddy.in.users/3/17  key k  open",
        "  invalid_enum  role: expected this",
        "  missing_required_field  id: expected this",
        "  sent by import",
        "  the rejection is buddy.rejected.users/0/0",
        "The record: (values masked, see show_values)",
        '> "role": "m•••••" 6 characters',
        '  "first_name": "O••" 3 characters',
        '  "age": a number',
        '  "tags": a list of 2 values',
        '  "more": an object',
        '> "id" is not there',
    ]


def test_a_setting_shows_the_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected(tmp_path, b'{"role": "men\\u001btor", "tags": [1]}', (Code.INVALID_ENUM, "role"))
    monkeypatch.setenv("BUDDY_SHOW_VALUES", "true")
    capsys.readouterr()
    assert run(["rejections", "show", "in.users/3/17"]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "The record:",
        '> "role": "men\\u001btor"',
        '  "tags": [1]',
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "The record was a deletion, or too large to be kept."),
        (b"\xff\x00", "The record: 2 bytes that are no JSON"),
        (b"[1, 2]", "  a list of 2 values"),
    ],
)
def test_originals_of_any_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: bytes | None, said: str
) -> None:
    rejected(tmp_path, record, (Code.MALFORMED_RECORD, ""))
    capsys.readouterr()
    assert run(["rejections", "show", "in.users/3/17"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_programs_get_the_rejection_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rejected(tmp_path, b'{"role":"x"}', (Code.INVALID_ENUM, "role"))
    capsys.readouterr()
    assert run(["rejections", "show", "in.users/3/17", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["coordinate"], shown["state"], shown["cause"]) == (
        "buddy.rejected.users/0/0",
        "open",
        None,
    )
    assert shown["rejection"]["record"] == {"role": "x"}


@pytest.mark.parametrize(
    ("coordinate", "said"),
    [
        ("users/3/17", "'users/3/17' is no coordinate: say TOPIC/PARTITION/OFFSET"),
        ("in.users/3/18", "there is no rejection at buddy.in.users/3/18, or no longer"),
        ("rejected.events/0/0", "there is no rejection at buddy.rejected.events/0/0"),
    ],
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], coordinate: str, said: str
) -> None:
    rejected(tmp_path, b"{}", (Code.INVALID_ENUM, "role"))
    capsys.readouterr()
    assert run(["rejections", "show", coordinate]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"buddy: {said}")


def test_an_orphan_names_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rejected(tmp_path, b"{}", (Code.INVALID_ENUM, "role"), key=uuid(1))
    record = msgspec.json.encode({"buddy_id": uuid(1)})
    rejected(tmp_path, record, (Code.ORPHANED_USER_ID, "buddy_id"), entity="matches")
    capsys.readouterr()
    assert run(["rejections", "show", "in.matches/3/17"]) == 0
    assert "  caused by the rejection of buddy.in.users/3/17\n" in capsys.readouterr().out


@given(st.text(min_size=3))
def test_of_a_text_only_the_first_letter_is_seen(text: str) -> None:
    shape: Any = masked({"name": text})["name"]
    assert isinstance(shape, Masked)
    inside = shape.text[1 : shape.text.rindex('"')]
    assert inside.rstrip("•") in ("", text[0])
