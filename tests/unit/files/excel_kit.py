"""Workbooks laid out as Excel does it, part by part, for the tests of their readers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
DECLARATION = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\r\n'
GENERAL, DATE, PERCENT, DURATION, OWN_DATE, TEXT = range(6)
STYLES = f"""<styleSheet xmlns="{MAIN}"><numFmts count="1">
<numFmt numFmtId="164" formatCode="[$-407]dd/mm/yyyy\\ hh:mm;@"/></numFmts>
<fonts count="1"><font><sz val="11"/></font></fonts>
<fills count="1"><fill><patternFill patternType="none"/></fill></fills>
<borders count="1"><border/></borders>
<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>
<cellXfs count="6"><xf numFmtId="0"/><xf numFmtId="14" applyNumberFormat="1"/>
<xf numFmtId="9"/><xf numFmtId="46"/><xf numFmtId="164"/><xf numFmtId="49"/></cellXfs>
</styleSheet>"""


def excel(
    path: Path,
    sheets: Mapping[str, str],
    shared: Sequence[str] = (),
    *,
    epoch_1904: bool = False,
    states: Mapping[str, str] | None = None,
    parts: Mapping[str, bytes] | None = None,
) -> Path:
    """A workbook laid out as Excel does it. `sheets`: the rows of each, as XML.

    `parts` come on top, or in place of those of the same name.
    """
    numbers = range(1, len(sheets) + 1)
    override = "".join(
        f'<Override PartName="/xl/worksheets/sheet{n}.xml" ContentType="{TYPE}.worksheet+xml"/>'
        for n in numbers
    )

    def state_of(name: str) -> str:
        return (states or {}).get(name, "visible")

    listed = "".join(
        f'<sheet name="{escape(name)}" sheetId="{n}" state="{state_of(name)}" r:id="rId{n}"/>'
        for n, name in enumerate(sheets, 1)
    )
    dates = 'date1904="1"' if epoch_1904 else ""

    related = "".join(
        f'<Relationship Id="rId{n}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n in numbers
    )
    written = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{TYPE}.sheet.main+xml"/>'
        f'<Override PartName="/xl/sharedStrings.xml" ContentType="{TYPE}.sharedStrings+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{TYPE}.styles+xml"/>{override}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="rId1" '
        f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}">'
        f"<workbookPr {dates}/><sheets>{listed}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">{related}'
        f'<Relationship Id="rId90" Type="{OFFICE}/styles" Target="styles.xml"/>'
        f'<Relationship Id="rId91" Type="{OFFICE}/sharedStrings" Target="sharedStrings.xml"/>'
        "</Relationships>",
        "xl/styles.xml": STYLES,
        "xl/sharedStrings.xml": f'<sst xmlns="{MAIN}" count="9" uniqueCount="9">'
        f"{''.join(f'<si>{one}</si>' for one in shared)}</sst>",
    }
    for n, rows in enumerate(sheets.values(), 1):
        written[f"xl/worksheets/sheet{n}.xml"] = (
            f'<worksheet xmlns="{MAIN}" xmlns:r="{OFFICE}" xmlns:x14ac="urn:x"><dimension '
            f'ref="A1:Z9"/><sheetData>{rows}</sheetData><mergeCells count="1"><mergeCell '
            'ref="A2:A3"/></mergeCells><pageMargins left="0.7"/></worksheet>'
        )
    whole = {name: (DECLARATION + text).encode() for name, text in written.items()}
    return pack(path, whole | dict(parts or {}))


def pack(path: Path, parts: Mapping[str, bytes]) -> Path:
    """A package of these parts, in their order."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def unpack(path: Path) -> dict[str, bytes]:
    """The parts of a package."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def row(number: int, *cells: str) -> str:
    return f'<row r="{number}" spans="1:9" x14ac:dyDescent="0.25">{"".join(cells)}</row>'


def strings(number: int, *texts: str) -> str:
    """A row of inline strings, without references."""
    return row(number, *(f'<c t="inlineStr"><is><t>{escape(t)}</t></is></c>' for t in texts))
