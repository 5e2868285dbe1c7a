"""Tokens of the HTTP API: what a file may say, and when it is read again."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.unit.files_kit import improper
from worker.errors import ConfigurationError
from worker.http.access import Caller, Tokens, new_token


def entry(name: str, token: str, *roles: str) -> str:
    listed = ", ".join(f'"{role}"' for role in roles)
    digest = sha256(token.encode()).hexdigest()
    return f'[[tokens]]\nname = "{name}"\nroles = [{listed}]\nsha256 = "{digest}"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def rewrite(file: Path, text: str) -> None:
    """Another content, at a time that differs however coarse the clock of files is."""
    moment = file.stat().st_mtime_ns + 1_000_000_000
    file.write_text(text)
    os.utime(file, ns=(moment, moment))


def test_a_token_is_known_by_its_hash(file: Path) -> None:
    token, digest = new_token()
    assert digest == sha256(token.encode()).hexdigest()
    file.write_text(entry("crm", token, "send") + entry("ops", "other", "watch", "operate"))
    tokens = Tokens(file)
    assert tokens.caller(token) == Caller("crm", frozenset({"send"}))
    assert tokens.caller("other") == Caller("ops", frozenset({"watch", "operate"}))
    assert token not in file.read_text()
    for wrong in ("", token[:-1], token + "x", digest, "\udcff"):
        assert tokens.caller(wrong) is None


def test_no_two_tokens_are_alike() -> None:
    assert len({new_token()[0] for _ in range(100)}) == 100
    assert all(len(new_token()[0]) >= 40 for _ in range(100))


def test_a_changed_file_is_read_again(file: Path) -> None:
    file.write_text(entry("crm", "first", "send"))
    tokens = Tokens(file)
    rewrite(file, entry("crm", "second", "send"))
    assert tokens.caller("first") is None
    assert tokens.caller("second") is not None


@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "large"])
def test_what_is_no_small_file_is_refused_and_not_waited_for(file: Path, kind: str) -> None:
    file.write_text(entry("crm", "first", "send"))
    tokens = Tokens(file)
    file.unlink()
    improper(file, kind)
    with pytest.raises(ConfigurationError, match=r"^tokens file .* cannot be used: it is "):
        Tokens(file)
    with capture_logs() as logs:
        assert tokens.caller("first") is not None, "it stays valid"
    assert [line["event"] for line in logs] == ["tokens_not_read"]


@pytest.mark.parametrize("text", ["[[tokens]", 'tokens = "all"', None])
def test_a_changed_file_that_cannot_be_used_is_told_once(file: Path, text: str | None) -> None:
    file.write_text(entry("crm", "first", "send"))
    tokens = Tokens(file)
    if text is None:
        file.unlink()
    else:
        rewrite(file, text)
    with capture_logs() as logs:
        assert tokens.caller("first") is not None, "it stays valid"
        assert tokens.caller("first") is not None
    assert [line["event"] for line in logs] == ["tokens_not_read"]
    file.write_text(entry("crm", "second", "send"))
    assert tokens.caller("second") is not None
    assert tokens.caller("first") is None


@pytest.mark.parametrize(
    "text",
    [
        "[[tokens]",
        "[[token]]",
        entry("a b", "t", "send"),
        entry("crm", "t", "all"),
        entry("crm", "t"),
        entry("crm", "t", "send").replace("sha256", "token"),
        entry("crm", "t", "send") + entry("crm", "u", "send"),
        "x = " + "[" * 10_000,
        "\x00",
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"^tokens file .*tokens\.toml") as caught:
        Tokens(file)
    assert "\n" not in str(caught.value)
    assert sha256(b"t").hexdigest() not in str(caught.value)


def test_a_missing_file_is_one_line(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        Tokens(file)


def test_an_empty_file_lets_nobody_in(file: Path) -> None:
    file.write_text("")
    assert Tokens(file).caller("") is None
