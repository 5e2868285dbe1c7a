"""Texts of others, made safe for a terminal."""

from __future__ import annotations

import pytest

from worker.core.shown import shown


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain é", "plain é"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb", r"a\nb"),
        ("\u202ename", r"\u202ename"),
        ("\udc80", r"\udc80"),
    ],
)
def test_nothing_moves_the_cursor_or_imitates_a_line(text: str, safe: str) -> None:
    assert shown(text) == safe


@pytest.mark.parametrize(
    ("text", "safe"), [("abcd", "abcd"), ("abcde", "abc…"), ("\n" * 9, "\\n\\…")]
)
def test_the_result_has_at_most_so_many_characters(text: str, safe: str) -> None:
    assert shown(text, 4) == safe
