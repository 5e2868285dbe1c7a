"""What `buddy pull` refuses before it asks a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli.main import run

SECRET = "tr0ub4dor"


@pytest.mark.parametrize("token", [f"{SECRET}\nX: 1", f"{SECRET}€", f"{SECRET}é", f"{SECRET}\x7f"])
@pytest.mark.parametrize("is_file", [True, False])
def test_a_token_that_no_header_carries_is_one_line_without_it(
    token: str,
    is_file: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["pull", "http://127.0.0.1:9", str(tmp_path / "exports")]
    if is_file:
        (tmp_path / "token").write_text(token)
        arguments += ["--token-file", str(tmp_path / "token")]
    else:
        monkeypatch.setenv("BUDDY_HTTP_TOKEN", token)
    assert run(arguments) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert SECRET not in said


@pytest.mark.parametrize("end", ["#x", "/#", "?a=1", "/?"])
def test_a_url_of_more_than_a_server_is_refused(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pull", f"http://127.0.0.1:9{end}", str(tmp_path)]) == 2
    assert "must be a URL such as" in capsys.readouterr().err
