"""The console script."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from worker.cli.__main__ import main


def test_an_interrupt_while_it_imports_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def interrupted(name: str, *others: Any) -> Any:
        if name == "worker.cli.main":
            raise KeyboardInterrupt
        return imported(name, *others)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "buddy: interrupted\n"
