"""The parts of a workbook apart from its rows: constant or short XML, as in ECMA-376."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import quoteattr

import msgspec

_DECLARATION: Final = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN: Final = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE: Final = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE: Final = "http://schemas.openxmlformats.org/package/2006"
_TYPES: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml"

BOLD: Final = 1
RATING: Final = 2
"""Cell styles, as numbered in `STYLES`."""

STYLES: Final = (
    f'{_DECLARATION}<styleSheet xmlns="{_MAIN}">'
    '<numFmts count="1"><numFmt numFmtId="164" formatCode="0.00##############"/></numFmts>'
    '<fonts count="2"><font><sz val="11"/><name val="Calibri"/></font>'
    '<font><b/><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill>'
    '<fill><patternFill patternType="gray125"/></fill></fills>'
    '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs>'
    '<cellXfs count="3"><xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/>'
    '<xf numFmtId="0" fontId="1" fillId="0" borderId="0" xfId="0" applyFont="1"/>'
    '<xf numFmtId="164" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    "</cellXfs>"
    '<cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles>'
    "</styleSheet>"
)

PACKAGE_RELATIONS: Final = (
    f'{_DECLARATION}<Relationships xmlns="{_PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/>'
    "</Relationships>"
)


class FinishedSheet(msgspec.Struct, frozen=True):
    """A finished sheet; `rows` counts the header row too."""

    title: str
    columns: int
    rows: int
    filtered: bool


def column_letters(number: int) -> str:
    """`A` for 1, `Z` for 26, `AA` for 27."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def sheet_start(widths: Sequence[int], rows: int) -> str:
    """The XML of a sheet before its first row, which is frozen. `rows` counts the header row."""
    columns = "".join(
        f'<col min="{n}" max="{n}" width="{width}" customWidth="1"/>'
        for n, width in enumerate(widths, 1)
    )
    return (
        f'{_DECLARATION}<worksheet xmlns="{_MAIN}">'
        f'<dimension ref="A1:{column_letters(len(widths))}{rows}"/>'
        '<sheetViews><sheetView workbookViewId="0">'
        '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/>'
        '<selection pane="bottomLeft"/></sheetView></sheetViews>'
        f'<sheetFormatPr defaultRowHeight="15"/><cols>{columns}</cols><sheetData>'
    )


def sheet_end(sheet: FinishedSheet) -> str:
    """The XML of a sheet after its last row."""
    reference = f"A1:{column_letters(sheet.columns)}{sheet.rows}"
    filtered = f'<autoFilter ref="{reference}"/>' if sheet.filtered else ""
    return f"</sheetData>{filtered}</worksheet>"


def header_row(titles: Sequence[str]) -> str:
    """The XML of the first row, bold."""
    cells = "".join(
        f'<c r="{column_letters(n)}1" s="{BOLD}" t="inlineStr"><is><t>{title}</t></is></c>'
        for n, title in enumerate(titles, 1)
    )
    return f'<row r="1">{cells}</row>'


def sheet_path(number: int) -> str:
    """The path in the archive of the sheet with that number (from 1)."""
    return f"xl/worksheets/sheet{number}.xml"


def workbook(sheets: Sequence[FinishedSheet]) -> str:
    """xl/workbook.xml, with the hidden name that Excel gives each filtered range."""
    entries = "".join(
        f'<sheet name={quoteattr(sheet.title)} sheetId="{n}" r:id="rId{n}"/>'
        for n, sheet in enumerate(sheets, 1)
    )
    names = "".join(
        f'<definedName name="_xlnm._FilterDatabase" localSheetId="{n}" hidden="1">'
        f"'{sheet.title}'!$A$1:${column_letters(sheet.columns)}${sheet.rows}</definedName>"
        for n, sheet in enumerate(sheets)
        if sheet.filtered
    )
    named = f"<definedNames>{names}</definedNames>" if names else ""
    return (
        f'{_DECLARATION}<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}">'
        f"<bookViews><workbookView/></bookViews><sheets>{entries}</sheets>{named}</workbook>"
    )


def workbook_relations(sheets: Sequence[FinishedSheet]) -> str:
    """xl/_rels/workbook.xml.rels."""
    entries = "".join(
        f'<Relationship Id="rId{n}" Type="{_OFFICE}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n, _ in enumerate(sheets, 1)
    )
    styles = (
        f'<Relationship Id="rId{len(sheets) + 1}" Type="{_OFFICE}/styles" Target="styles.xml"/>'
    )
    return (
        f'{_DECLARATION}<Relationships xmlns="{_PACKAGE}/relationships">'
        f"{entries}{styles}</Relationships>"
    )


def content_types(sheets: Sequence[FinishedSheet]) -> str:
    """[Content_Types].xml."""
    entries = "".join(
        f'<Override PartName="/{sheet_path(n)}" ContentType="{_TYPES}.worksheet+xml"/>'
        for n, _ in enumerate(sheets, 1)
    )
    return (
        f'{_DECLARATION}<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{_TYPES}.sheet.main+xml"/>'
        f'<Override PartName="/xl/styles.xml" ContentType="{_TYPES}.styles+xml"/>'
        f"{entries}</Types>"
    )
