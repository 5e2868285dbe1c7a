"""Workbooks as other programs write them, after public bug reports; calamine is a second opinion.

Each case changes a good workbook of one feedback. It is read to the same record, or refused with
a line that names the cause; what a sheet loses is told.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch
from xml.sax.saxutils import quoteattr

import msgspec
import pytest
from python_calamine import CalamineWorkbook

from schemas import ENTITIES
from tests.unit.files.excel_kit import (
    DECLARATION,
    MAIN,
    OFFICE,
    STYLES,
    excel,
    pack,
    row,
    strings,
    unpack,
)
from worker.errors import UsageError
from worker.files.workbook import read_workbook
from worker.files.xlsx.formats import shown_as

Parts = dict[str, bytes]
BOOK, SHEET = "xl/workbook.xml", "xl/worksheets/sheet1.xml"
RELATED, ROOT, SHARED = "xl/_rels/workbook.xml.rels", "_rels/.rels", "xl/sharedStrings.xml"
STRICT = "http://purl.oclc.org/ooxml"
RECORD = {"feedback_id": "ä", "rating": 0.5, "feedback_text": "shared"}
ROWS = strings(1, "feedback_id", "feedback_text", "rating") + row(
    2,
    '<c r="A2" t="inlineStr"><is><t>ä</t></is></c>',
    '<c r="B2" t="s"><v>0</v></c>',
    '<c r="C2" s="1"><v>0.5</v></c>',
)


@pytest.fixture
def good(tmp_path: Path) -> Parts:
    styles = STYLES.replace('<xf numFmtId="14" applyNumberFormat="1"/>', '<xf numFmtId="2"/>')
    path = excel(tmp_path / "good.xlsx", {"Feedback": ROWS}, ["<t>shared</t>"])
    return unpack(path) | {"xl/styles.xml": (DECLARATION + styles).encode()}


def changed(part: str, *pairs: tuple[str, str]) -> Callable[[Parts], Parts]:
    """Texts of one part replaced."""

    def change(parts: Parts) -> Parts:
        text = parts[part].decode()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        return parts | {part: text.encode()}

    return change


def named(change: Callable[[str], str]) -> Callable[[Parts], Parts]:
    """Other names of the parts."""
    return lambda parts: {change(name): data for name, data in parts.items()}


def without(*words: str) -> Callable[[Parts], Parts]:
    return lambda parts: {n: d for n, d in parts.items() if not any(word in n for word in words)}


def encoded(part: str, name: str, codec: str) -> Callable[[Parts], Parts]:
    return lambda parts: parts | {part: parts[part].decode().replace("UTF-8", name).encode(codec)}


def prefixed(part: str) -> Callable[[Parts], Parts]:
    """All elements of the main namespace get a prefix, as the Open XML SDK writes them."""

    def change(parts: Parts) -> Parts:
        text = parts[part].decode().replace("xmlns=", "xmlns:x=")
        text = text.replace("<", "<x:").replace("<x:/", "</x:").replace("<x:?", "<?")
        return parts | {part: text.encode()}

    return change


def strict(parts: Parts) -> Parts:
    def change(data: bytes) -> bytes:
        text = data.decode().replace(MAIN, f"{STRICT}/spreadsheetml/main")
        return text.replace(OFFICE, f"{STRICT}/officeDocument/relationships").encode()

    return {name: change(data) for name, data in parts.items()}


TARGET = 'Target="worksheets/'
STYLED, FILL = "xl/styles.xml", '<fill><patternFill patternType="none"/></fill>'
READ: dict[str, Callable[[Parts], Parts]] = {
    "strict": strict,
    "target from the root": changed(RELATED, (TARGET, 'Target="/xl/worksheets/')),
    "target from the root without its slash": changed(RELATED, (TARGET, 'Target="xl/worksheets/')),
    "target by way of the folder above": changed(RELATED, (TARGET, 'Target="../xl/worksheets/')),
    "target with a backslash": changed(RELATED, (TARGET, 'Target=".\\worksheets\\')),
    "target in another case": changed(RELATED, ("sheet1.xml", "SHEET1.XML")),
    "target with percent signs": lambda parts: {
        name.replace("sheet1", "sheet 1"): data
        for name, data in changed(RELATED, ("sheet1.xml", "sheet%201.xml"))(parts).items()
    },
    "names with backslashes": named(lambda name: name.replace("/", "\\")),
    "names with a slash in front": named(lambda name: f"/{name}"),
    "names in capitals": named(str.upper),
    "no relations of the package": without(ROOT),
    "no content types": without("Content_Types"),
    "no styles": without("styles"),
    "strings without a relation": changed(RELATED, (f'Type="{OFFICE}/sharedStrings"', 'Type="x"')),
    "prefixes in the sheet": prefixed(SHEET),
    "prefixes in the workbook": lambda parts: (
        parts
        | {
            BOOK: f'<x:workbook xmlns:x="{MAIN}" xmlns:q="{OFFICE}"><x:sheets><x:sheet '
            'q:id="rId1" name="Feedback" sheetId="1"/></x:sheets></x:workbook>'.encode()
        }
    ),
    "prefixes in the strings": prefixed(SHARED),
    "prefixes in the relations": prefixed(RELATED),
    "a sheet in UTF-16": encoded(SHEET, "UTF-16", "utf-16"),
    "a workbook in UTF-16": encoded(BOOK, "UTF-16", "utf-16"),
    "strings in UTF-16": encoded(SHARED, "UTF-16", "utf-16"),
    "a sheet in Latin-1": encoded(SHEET, "ISO-8859-1", "latin-1"),
    "byte order marks": lambda parts: {n: b"\xef\xbb\xbf" + data for n, data in parts.items()},
    "no dimension": changed(SHEET, ('<dimension ref="A1:Z9"/>', "")),
    "no references": changed(SHEET, *((f' r="{c}2"', "") for c in ("A", "B", "C", ""))),
    "references in lower case": changed(SHEET, ('r="A2"', 'r="a2"'), ('s="1"', 's=""')),
    "references that are absolute": changed(SHEET, ('r="A2"', 'r="$A$2"')),
    "cells out of order": changed(
        SHEET,
        ('<c r="C2" s="1"><v>0.5</v></c>', ""),
        ('<c r="A2"', '<c r="C2"><v>0.5</v></c><c r="A2"'),
    ),
    "runs and a phonetic reading": changed(
        SHEET,
        ("<t>ä</t>", '<r><rPr><b/></rPr><t>ä</t></r><rPh sb="0" eb="1"><t>e</t></rPh>'),
    ),
    "a comment": changed(SHEET, ("<c ", "<!-- </row><row> --><c ")),
    "a comment in front": changed(SHEET, ("<sheetData>", "<!-- <sheetData> --><sheetData>")),
    "a processing instruction": changed(SHEET, ('<row r="2"', '<?go </row>?><row r="2"')),
    "CDATA": changed(SHEET, ("<t>ä</t>", "<t><![CDATA[ä]]></t>")),
    "character references": changed(SHEET, ("<t>ä</t>", "<t>&#228;</t>")),
    "a comment in a part that is not read": lambda parts: parts | {"xl/metadata.xml": b"<!-- -->"},
    "what follows the rows is cut off": lambda parts: (
        parts | {SHEET: parts[SHEET].partition(b"<mergeCells")[0]}
    ),
    "what looks like rows in an extension": changed(
        SHEET, ("</worksheet>", '<extLst><row r="9"><c><v>9</v></c></row></extLst></worksheet>')
    ),
    "a compatibility block": changed(
        BOOK, ("<workbookPr", "<m:AlternateContent><m:Choice/></m:AlternateContent><workbookPr")
    ),
    "views and calculation settings that make no sense": changed(
        BOOK,
        ("<workbookPr", '<bookViews><workbookView tabRatio="x"/></bookViews><workbookPr'),
        ("</workbook>", '<calcPr iterateDelta="x" calcId=""/></workbook>'),
    ),
    "links to other workbooks": changed(
        BOOK, ("</workbook>", '<externalReference r:id="rId8"/></workbook>')
    ),
    "empty fill": changed(STYLED, (FILL, "<fill/>")),
    "extension in a fill": changed(STYLED, (FILL, "<fill><extLst><ext/></extLst></fill>")),
    "colour with a hash": changed(STYLED, (FILL, '<fill><color rgb="#FF0000"/></fill>')),
    "attributes that nobody knows": changed(STYLED, ("<xf ", '<xf quux="1" applyFill="-" ')),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ.keys())
def test_what_others_write_is_read(
    tmp_path: Path, good: Parts, change: Callable[[Parts], Parts]
) -> None:
    lines: list[str] = []
    path = pack(tmp_path / "x.xlsx", change(good))
    (record,) = read_workbook(path, None, notice=lines.append)
    assert msgspec.json.decode(record.value) == RECORD
    assert (record.line, record.sheet) == (2, "Feedback")
    assert [line for line in lines if "no column" not in line] == []


def archived(
    write: Callable[[zipfile.ZipFile, str, bytes], None], method: int
) -> Callable[[Parts], bytes]:
    def archive(parts: Parts) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as written:
            for name, data in parts.items():
                write(written, name, data)
        return file.getvalue()

    return archive


def plainly(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(name, data)


def zip64(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with archive.open(name, "w", force_zip64=True) as part:
        part.write(data)


class Pipe(io.RawIOBase):
    """Cannot be sought, so sizes follow the data."""

    def __init__(self) -> None:
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.written += piece
        return len(piece)


def streamed(parts: Parts) -> bytes:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return pipe.written


deflated = archived(plainly, zipfile.ZIP_DEFLATED)
ARCHIVES: dict[str, Callable[[Parts], bytes]] = {
    "stored": archived(plainly, zipfile.ZIP_STORED),
    "zip64": archived(zip64, zipfile.ZIP_DEFLATED),
    "data descriptors": streamed,
    "bytes before": lambda parts: b"MZ" * 20 + deflated(parts),
    "bytes behind": lambda parts: deflated(parts) + b"\n" * 20,
}


@pytest.mark.parametrize("archive", ARCHIVES.values(), ids=ARCHIVES.keys())
def test_archives_of_any_making_are_read(
    tmp_path: Path, good: Parts, archive: Callable[[Parts], bytes]
) -> None:
    path = tmp_path / "x.xlsx"
    path.write_bytes(archive(good))
    assert [msgspec.json.decode(r.value) for r in read_workbook(path, None)] == [RECORD]
    ((_, *cells),) = [CalamineWorkbook.from_path(path).get_sheet_by_index(0).to_python()]
    assert cells == [["ä", "shared", 0.5]]


def locked(parts: Parts) -> bytes:
    data = bytearray(deflated(parts))
    for mark, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = -1
        while (place := data.find(mark, place + 1)) >= 0:
            data[place + flags] |= 1
    return bytes(data)


def flipped(parts: Parts) -> bytes:
    data = bytearray(archived(plainly, zipfile.ZIP_STORED)(parts))
    data[data.index(b"<v>0.5</v>") + 5] ^= 1
    return bytes(data)


def misplaced(parts: Parts) -> bytes:
    """The sheet is said to begin in front of the file."""
    data = bytearray(deflated(parts))
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 16, struct.unpack_from("<I", data, end + 16)[0] + 4000)
    return bytes(data)


OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
REFUSED: dict[str, tuple[Callable[[Parts], bytes], str]] = {
    "empty": (lambda _: b"", "it is empty"),
    "old": (lambda _: OLE, r"it is an old workbook \(.xls\) or has a password"),
    "password": (lambda _: OLE + "EncryptedPackage".encode("utf-16-le"), "it has a password"),
    "password of the archive": (locked, "it needs a password"),
    "web page": (lambda _: b"\n<HTML><table>", "it is a web page"),
    "XML of Excel 2003": (lambda _: b'<?xml version="1.0"?><Workbook/>', "it is XML"),
    "gzip": (lambda _: b"\x1f\x8b\x08", "packed with gzip"),
    "text": (lambda _: b"id,email\n", "name it .csv"),
    "cut": (lambda parts: deflated(parts)[:-30], "it is cut off or damaged"),
    "a wrong place": (misplaced, "it is cut off or damaged"),
    "binary": (lambda _: deflated({"xl/workbook.bin": b""}), "a binary workbook"),
    "OpenDocument": (lambda _: deflated({"content.xml": b""}), "an OpenDocument file"),
    "another archive": (lambda _: deflated({"a.txt": b""}), "another kind of ZIP archive"),
    "a letter": (
        lambda parts: deflated(
            {ROOT: parts[ROOT].replace(b"xl/workbook", b"w/document"), "w/document.xml": b"<w/>"}
        ),
        "it lists no sheets",
    ),
    "a changed digit": (flipped, "it is damaged"),
    "a document type": (
        lambda parts: deflated(changed(SHEET, ("<worksheet", "<!DOCTYPE x><worksheet"))(parts)),
        "sheet Feedback: cannot be read beyond row 0: a document type declaration",
    ),
    "entities in the workbook": (
        lambda parts: deflated(changed(BOOK, ("<workbook ", "<!DOCTYPE x><workbook "))(parts)),
        "a document type declaration",
    ),
    "no strings": (
        lambda parts: deflated(without("shared")(parts)),
        "beyond row 1: a cell refers to shared string 0 of 0",
    ),
    "cut sheet": (
        lambda parts: deflated(parts | {SHEET: parts[SHEET].partition(b"</sheetData")[0]}),
        r"beyond row 2: broken XML \(no element found\)",
    ),
    "an encoding of several bytes": (
        lambda parts: deflated(changed(SHEET, ("UTF-8", "GBK"))(parts)),
        "beyond row 0: XML in an unknown encoding",
    ),
    "unknown encoding": (
        lambda parts: deflated(changed(SHEET, ("UTF-8", "quux"))(parts)),
        "beyond row 0: (XML in an unknown|broken XML .unknown) encoding",
    ),
}


@pytest.mark.parametrize(("make", "cause"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_is_called_by_its_name(
    tmp_path: Path, good: Parts, make: Callable[[Parts], bytes], cause: str
) -> None:
    path = tmp_path / "x.xlsx"
    path.write_bytes(make(good))
    with pytest.raises(UsageError, match=cause) as error:
        list(read_workbook(path, None))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "target", "fault"),
    [
        (f"{OFFICE}/chartsheet", "worksheets/sheet1.xml", "it is a chart"),
        (f"{OFFICE}/dialogsheet", "worksheets/sheet1.xml", "it is a dialog"),
        ("urn:ms/xlMacrosheet", "worksheets/sheet1.xml", "it is a sheet of macros"),
        (f"{OFFICE}/worksheet", "worksheets/gone.xml", "xl/worksheets/gone.xml is not in the file"),
        (None, "", "the workbook does not say where it is"),
    ],
)
def test_a_sheet_without_rows_is_named(
    tmp_path: Path, good: Parts, kind: str | None, target: str, fault: str
) -> None:
    title = "Users\u202e\n"
    listed = f'<sheet name={quoteattr(title)} sheetId="7" r:id="rId7"/></sheets>'
    parts = changed(BOOK, ("</sheets>", listed))(good)
    if kind is not None:
        relation = f'<Relationship Id="rId7" Type="{kind}" Target="{target}"/></Relationships>'
        parts = changed(RELATED, ("</Relationships>", relation))(parts)
    lines: list[str] = []
    path = pack(tmp_path / "x.xlsx", parts)
    assert len(list(read_workbook(path, None, notice=lines.append))) == 1
    assert lines[0] == f"{path}, sheet Users\\u202e\\n: left out, {fault}"


def test_very_hidden_sheets_are_named(tmp_path: Path) -> None:
    path = excel(
        tmp_path / "x.xlsx", {"Feedback": ROWS}, ["<t>a</t>"], states={"Feedback": "veryHidden"}
    )
    with pytest.raises(UsageError, match="sheet Feedback: left out, it is hidden"):
        list(read_workbook(path, None))


def test_the_rows_of_a_hidden_row_are_read(tmp_path: Path) -> None:
    rows = strings(1, "feedback_id") + '<row r="2" hidden="1"><c t="str"><v>a</v></c></row>'
    assert len(list(read_workbook(excel(tmp_path / "x.xlsx", {"Feedback": rows}), None))) == 1


def test_a_format_that_no_cell_has_is_not_looked_at(tmp_path: Path, good: Parts) -> None:
    codes = "".join(f'<numFmt numFmtId="{n}" formatCode="{"[" * 250}"/>' for n in range(200, 9200))
    change = changed(STYLED, ('<numFmts count="1">', f"<numFmts>{codes}"))
    with patch("worker.files.xlsx.book.shown_as", wraps=shown_as) as looked:
        read_all = list(read_workbook(pack(tmp_path / "x.xlsx", change(good)), None))
    assert len(read_all) == 1
    assert looked.call_count <= 1


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, good: Parts) -> None:
    data = bytearray(deflated(good))
    position = data.index(b"PK\x01\x02")
    while data[position + 46 : position + 46 + len(SHEET)] != SHEET.encode():
        position = data.index(b"PK\x01\x02", position + 1)
    struct.pack_into("<I", data, position + 24, 1 << 30)  # the size that the sheet unpacks to
    path = tmp_path / "x.xlsx"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="row 0: unpacks to 1073741824 bytes"):
        list(read_workbook(path, None))


def test_sheets_are_read_in_the_order_of_entities(tmp_path: Path) -> None:
    path = excel(
        tmp_path / "x.xlsx",
        {
            "Feedback": strings(1, "feedback_id") + strings(2, "a"),
            "Users": strings(1, "id") + strings(2, "b"),
        },
    )
    assert [record.entity for record in read_workbook(path, None)] == ["users", "feedback"]
    assert [r.entity for r in read_workbook(path, ENTITIES["feedback"])] == ["feedback"]
