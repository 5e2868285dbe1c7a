"""Lines and NDJSON: numbers, blank lines, BOM, and lines that are too long."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.files.stream_kit import BOM, Trickle
from worker.files import FileRecord, read_ndjson
from worker.files.lines import read_lines


def records(data: bytes, size: int = 1 << 20, limit: int = 1000) -> list[FileRecord]:
    return list(read_ndjson(Trickle(data, size), "users", "-", limit=limit))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\n", []),
        (BOM, []),
        (b"{}", [(1, b"{}")]),
        (b"{}\n", [(1, b"{}")]),
        (b"\n \t\r\n{}\n\nx", [(3, b"{}"), (5, b"x")]),
        (BOM + b"{}\n" + BOM + b"{}\n", [(1, b"{}"), (2, BOM + b"{}")]),
        (b"\xef\xbb{}\n", [(1, b"\xef\xbb{}")]),
        (b"{}\r\n{}\r\n", [(1, b"{}\r"), (2, b"{}\r")]),
        (b'{"a":"\xe2\x80\xa8\x0b\x0c"}\n', [(1, b'{"a":"\xe2\x80\xa8\x0b\x0c"}')]),
        (b"\xff\x00\n", [(1, b"\xff\x00")]),
        (b"\x0c\n", [(1, b"\x0c")]),
    ],
)
def test_lines_are_numbered_and_untouched(
    data: bytes, lines: list[tuple[int, bytes]], size: int
) -> None:
    found = records(data, size)
    assert [(record.line, record.value) for record in found] == lines
    assert all((r.entity, r.path, r.oversize, r.sheet) == ("users", "-", 0, None) for r in found)


@pytest.mark.parametrize("size", [1, 7, 10, 11, 1000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\nnext"])
def test_a_line_over_the_limit_is_cut_measured_and_hashed(size: int, end: bytes) -> None:
    first, second, *rest = records(b"a" * 10 + b"\n" + b"b" * 11 + end, size, limit=10)
    assert (first.value, first.oversize, first.sha256) == (b"a" * 10, 0, None)
    assert (second.line, second.value, second.oversize) == (2, b"b" * 10, 11)
    assert second.sha256 == hashlib.sha256(b"b" * 11).hexdigest()
    assert [record.value for record in rest] == ([b"next"] if end == b"\nnext" else [])


@given(st.lists(st.binary(max_size=12)).map(b"\n".join), st.integers(1, 20), st.integers(1, 20))
def test_lines_are_those_of_split(data: bytes, size: int, limit: int) -> None:
    expected = data.removeprefix(BOM).split(b"\n")
    if not expected[-1]:
        expected.pop()
    found = list(read_lines(Trickle(data, size), limit))
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    for line, whole in zip(found, expected, strict=True):
        assert line.data == whole[:limit]
        assert line.oversize == (len(whole) if len(whole) > limit else 0)
        if line.oversize:
            assert line.sha256 == hashlib.sha256(whole).hexdigest()


def test_a_pipe_gives_its_lines_as_they_come() -> None:
    receiver, sender = os.pipe()
    with os.fdopen(receiver, "rb") as stream:
        os.write(sender, b"{}\n")
        found = read_ndjson(stream, "users", "-")
        assert next(found).value == b"{}"
        os.close(sender)
        assert list(found) == []
