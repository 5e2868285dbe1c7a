"""The rows of a sheet, piece by piece: the short cut for plain rows against expat, and memory."""

from __future__ import annotations

import io
import re
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.files.xlsx.cells import EPOCH_1900, CellReader
from worker.files.xlsx.formats import Shown
from worker.files.xlsx.package import BROKEN
from worker.files.xlsx.rows import Row, read_rows
from worker.files.xlsx.strings import SharedStrings
from worker.files.xlsx.xml import TEXT

pytestmark = pytest.mark.thorough


class Pieces:
    """A part that comes in pieces of some bytes."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = io.BytesIO(data)
        self._size = size

    def read(self, _: int, /) -> bytes:
        return self._data.read(self._size)


def rows_of(sheet: str, size: int, strings: str = "") -> list[Row] | str:
    """The rows of a sheet, or the fault that ends them, and the rows before."""
    found: list[Row] = []
    try:
        shared = SharedStrings(Pieces(f"<sst>{strings}</sst>".encode(), size))
        meaning = CellReader(shared, {"3": Shown.DATE}, EPOCH_1900)
        found.extend(read_rows(Pieces(sheet.encode(), size), meaning))
    except BROKEN as error:
        return f"{found} {type(error).__name__}"
    return found


_cells = st.sampled_from(
    [
        '<c r="A1" t="s"><v>0</v></c>',
        '<c r="C1" t="s"><v>1</v></c>',
        "<c><v>1.50</v></c>",
        '<c r="B1" s="3"><v>45306</v></c>',
        '<c r="D2" t="inlineStr"><is><t xml:space="preserve"> a_x0041_ </t></is></c>',
        '<c r="B1" t="b"><v>1</v></c>',
        '<c r="A1" t="str"><f>1&lt;2</f><v>b &amp; c</v></c>',
        '<c r="E1"/>',
        '<c r="E1" s="3"></c>',
        "<c><f>1+1</f></c>",
        '<c t="e"><v>#N/A</v></c>',
        '<c r="XFE1"><v>1</v></c>',
        "<!-- </row><row> -->",
        "<![CDATA[</row>]]>",
        "<?go </row>?>",
        "</row>",
        "</row><row r='5'>",
        '</row><row r="7" x:dy="0.25">',
        "<v>&undefined;</v>",
        "\x01",
        "]]>",
        " \r\n",
        "ü",
        "<is><t>x</t></is>",
        '<c r="A1" r="A1"/>',
    ]
)
_rows = st.lists(
    st.lists(_cells, max_size=4).map("".join).map('<row r="3">{}</row>'.format), max_size=5
)
_strings = st.lists(st.sampled_from(["<t>a</t>", "<r><t>b</t></r>", "<t>c&amp;</t>", "<t/>"]))


@given(_rows, _strings, st.sampled_from([1, 7, 64, 1 << 18]))
@example(['<row r="3"><!-- </row>', "<row><c><v>1</v></c></row>", "--></row>"], [], 1 << 18)
@example(['<row r="3"><c r="A1"><v>1</v></c></row><c><v>1.50</v></c></row>'], [], 1 << 18)
def test_the_short_cut_finds_what_expat_finds(rows: list[str], texts: list[str], size: int) -> None:
    """A prefix keeps everything from the short cut."""
    shared = "".join(f"<si>{text}</si>" for text in texts)
    sheet = f"<worksheet><sheetData>{''.join(rows)}</sheetData></worksheet>"
    long_way = sheet.replace("<worksheet><", "<worksheet><x:", 1).replace("</sheetD", "</x:sheetD")
    assert rows_of(sheet, size, shared) == rows_of(long_way, size, shared)


@pytest.mark.parametrize("hiding", ["<!-- {} -->", "<?go {} ?>"])
def test_a_container_that_is_hidden_opens_no_short_cut(hiding: str) -> None:
    hidden = hiding.format('<sheetData><row r="1"><c><v>1</v></c></row>')
    sheet = f"<?xml version='1.0'?><w><x:sheetData>{hidden}</x:sheetData></w>"
    assert rows_of(sheet, 1 << 18) == []


def test_plain_text_is_what_expat_leaves_as_it_is() -> None:
    plain = re.compile(f"{TEXT}\\Z")
    for number in (*range(0x300), 0xD7FF, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF, 0x10FFFF):
        cell = f'<c t="str"><v>{chr(number)}</v></c>'
        sheet = f"<worksheet><x:sheetData><row>{cell}</row></x:sheetData></worksheet>"
        if plain.match(chr(number)):
            assert rows_of(sheet, 1 << 18) == [(1, {0: chr(number)})]


def test_a_cell_far_to_the_right_takes_no_memory() -> None:
    far = "".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(1, 20_000))
    found = rows_of(f"<worksheet><sheetData>{far}</sheetData></worksheet>", 1 << 18)
    assert found == [(n, {16_383: "1"}) for n in range(1, 20_000)]


@pytest.mark.parametrize("count", [40_000, 80_000], ids=["under 1 MiB", "over 1 MiB"])
def test_a_row_of_many_pieces_takes_no_more_than_its_size(count: int) -> None:
    runs = "<r><t>a</t></r>" * count
    sheet = f'<worksheet><sheetData><row r="1"><c r="A1" t="inlineStr"><is>{runs}</is></c></row>'
    tracemalloc.start()
    found = rows_of(f"{sheet}</sheetData></worksheet>", 1 << 18)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(1, {0: "a" * count})]
    assert peak < 16 * len(sheet)


def test_a_row_of_many_cells_is_not_taken_at_once() -> None:
    cells = "<c/>" * 300_000
    tracemalloc.start()
    found = rows_of(
        f'<worksheet><sheetData><row r="1">{cells}</row></sheetData></worksheet>', 1 << 18
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == []
    assert peak < 16 * len(cells)
