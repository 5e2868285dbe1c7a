"""Gzip and UTF-16, told by the first bytes; archives and bombs."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.files.stream_kit import BOM, Trickle
from worker.errors import UsageError
from worker.files import encodings, expand
from worker.files.encodings import as_utf8
from worker.files.foreign import NO_TEXT, markup

TEXT = 'id;"ä€😀"\r\n1;2\n'

# Without the time, which would give the test another name in each process.
PACKED = gzip.compress(b"a" * 100, mtime=0)
PACKED_TWICE = gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0)


def text_of(data: bytes, size: int = 1 << 20) -> bytes:
    stream = as_utf8(Trickle(data, size), "f.csv")
    found = b""
    while piece := stream.read():
        found += piece
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b""),
        (b"x", b"x"),
        (TEXT.encode(), TEXT.encode()),
        (BOM + TEXT.encode(), BOM + TEXT.encode()),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), BOM + TEXT.encode()),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), BOM + TEXT.encode()),
        (b"\xff\xfe", BOM),
        (b"\xff\xfea\0b", BOM + b"a\xff"),
        (b"\xff\xfe\x00\xd8a\0", BOM + b"\xed\xa0\x80a"),
        (b"\xff\xfea\0\x00\xd8", BOM + b"a\xed\xa0\x80"),
        (b"\xff", b"\xff"),
        (b"\xffa", b"\xffa"),
        (b"caf\xe9", b"caf\xe9"),
        (b"PK", b"PK"),
    ],
)
def test_what_comes_in_is_utf8_or_what_was_meant_to_be(
    data: bytes, expected: bytes, packed: bool, size: int
) -> None:
    assert text_of(gzip.compress(data) if packed else data, size) == expected


@given(
    st.text(st.characters(exclude_categories=())), st.sampled_from(["le", "be"]), st.integers(1, 9)
)
def test_any_utf16(text: str, order: str, size: int) -> None:
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    data = ("\ufeff" + text).encode(f"utf-16-{order}", "surrogatepass")
    if data.startswith(b"\xff\xfe\0\0"):
        return  # a text that starts with NUL looks like UTF-32
    assert text_of(data, size) == BOM + text.encode("utf-8", "surrogatepass")


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.integers(1, 60))
def test_any_gzip_also_of_several_parts(parts: list[bytes], size: int) -> None:
    whole = b"".join(parts)
    if whole[:1] in (b"\xff", b"\xfe", b"\x1f") or 0 in whole[:4] or whole.startswith((*NO_TEXT,)):
        return
    assert text_of(b"".join(map(gzip.compress, parts)) + bytes(8), size) == whole


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\xff\xfe\0\0a\0\0\0", "UTF-32"),
        (b"\0\0\xfe\xff\0\0\0a", "UTF-32"),
        (b"PK\x03\x04more", "ZIP archive"),
        (gzip.compress(b"PK\x03\x04more", mtime=0), "ZIP archive"),
        (b"\xd0\xcf\x11\xe0\xa1", "old or an encrypted workbook"),
        (b"\x1f\x8b", "gzip is broken"),
        (b"\x1f\x8bnonsense" * 3, "gzip is broken"),
        (PACKED[:-9], "gzip is broken"),
        (PACKED[:-3], "gzip is broken"),
        (PACKED + b"x", "gzip is broken"),
        (PACKED.replace(b"\x4b", b"\xff"), "gzip is broken"),
        (PACKED_TWICE, "gzip inside gzip"),
        (b"i\0\0\0d\0\0\0", "UTF-32"),
        (b"\0\0\0i\0\0\0d", "UTF-32"),
        (b"PK\x05\x06" + bytes(18), "an empty ZIP archive"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (bz2.compress(b"{}"), "packed with bzip2"),
        (lzma.compress(b"{}"), "packed with xz"),
        (b"\x28\xb5\x2f\xfd\0", "packed with zstd"),
    ],
)
def test_what_is_no_text_is_one_line(data: bytes, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as error:
        text_of(data)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("f.csv: ")


@pytest.mark.parametrize("size", [4, 5, 1000])
@pytest.mark.parametrize("order", ["le", "be"])
def test_utf16_without_a_mark_is_told_by_its_first_characters(order: str, size: int) -> None:
    assert text_of(TEXT.encode(f"utf-16-{order}"), size) == BOM + TEXT.encode()


@pytest.mark.parametrize("data", [b"i\0", b"\0", b"\0\0\0\0", b"id\0\0", b"\0i", b"i\0d"])
def test_a_nul_alone_makes_no_utf16(data: bytes) -> None:
    assert text_of(data) == data


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"<!DOCTYPE html><p>", "an HTML page"),
        (b"\xef\xbb\xbf \n<HTML xmlns:x='urn'>", "an HTML page"),
        (b"<table><tr><td>id", "an HTML page"),
        (b"<style>td{}</style>\n<table border=1>", "an HTML page"),
        (
            b'<?xml version="1.0"?>\n<?mso-application progid="Excel.Sheet"?>',
            "a spreadsheet in XML",
        ),
        (b"<html xmlns:o='urn:schemas-microsoft-com:office:office'>", "an HTML page"),
        (b'<?xml version="1.0"?><users>', "XML"),
        (b"{\\rtf1\\ansi", "a document in RTF"),
        (b'{"id":1}', None),
        (b"id,<b>", None),
        (b"", None),
    ],
)
def test_markup_is_told_by_its_start(start: bytes, kind: str | None) -> None:
    found = markup(start)
    assert found == (kind and f"is {kind}: open it in a spreadsheet and save it as .xlsx or .csv")


def test_a_bomb_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "_FREELY_UNPACKED", 4 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(64 << 20)) + packer.flush()
    stream = as_utf8(io.BytesIO(bomb), "f.csv")
    read = 0

    def drain() -> None:
        nonlocal read
        while piece := stream.read():
            assert len(piece) <= 1 << 20
            read += len(piece)

    with pytest.raises(UsageError, match="unpacks to more than 200 times its size"):
        drain()
    assert read <= 32 << 20


HEADER = b"\x1f\x8b\x08%c\0\0\0\0\0\xff"


@pytest.mark.parametrize("flags", [8, 16])
def test_a_long_name_in_a_gzip_costs_few_steps(flags: int) -> None:
    """A name or a comment that never ends is read in pieces, never byte by byte."""
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    def drain() -> None:
        with pytest.raises(UsageError, match="gzip is broken"):
            as_utf8(io.BytesIO(HEADER % flags + b"n" * 1_000_000), "f.csv").read()

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        drain()
    finally:
        sys.setprofile(before)
    assert steps < 10_000


@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_everything_that_a_gzip_header_may_hold(size: int) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(TEXT.encode()) + packer.flush()
    end = struct.pack("<II", zlib.crc32(TEXT.encode()), len(TEXT.encode()))
    extra, names = b"\5\0extra", b"name\0" + b"comment" * 20_000 + b"\0"
    member = HEADER % (4 | 8 | 16) + extra + names + body + end
    if size < 100_000:
        member = member.replace(b"comment" * 20_000, b"comment")
    assert text_of(member + bytes(40_000) + member, size) == 2 * TEXT.encode()


def test_a_pipe_is_read_as_it_comes() -> None:
    receiver, sender = os.pipe()
    with os.fdopen(receiver, "rb") as pipe:
        os.write(sender, b"{")
        stream = as_utf8(pipe, "-")
        assert stream.read() == b"{"
        os.close(sender)
        assert stream.read() == b""


def test_packed_files_are_told_by_their_bytes(tmp_path: Path) -> None:
    document = b'{"users":[{"id":"1"}]}'
    files = {
        "users.ndjson.gz": gzip.compress(b'{"id":"1"}\n'),
        "users.csv.gz": gzip.compress(b"id\n1\n"),
        "USERS.CSV.GZ": gzip.compress(b"id,email,first_name,last_name,role,joined_at\n1,,,,,\n"),
        "export.json.gz": gzip.compress(document),
        "users.json.gz": gzip.compress(b'[{"id":"1"}]'),
        "users.csv": gzip.compress(b"id\n1\n"),
        "plain/users.ndjson.gz": b'{"id":"1"}\n',
    }
    for name, data in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        records = [record for one in expand([path], None) for record in one.read()]
        assert [(r.entity, r.path, r.value) for r in records] == [
            ("users", str(path), b'{"id":"1"}')
        ]
    assert len(expand([tmp_path / "plain"], None)) == 1
