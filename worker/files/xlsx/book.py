"""A workbook as a whole: its sheets, its epoch, its shared strings, and its date styles."""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime
from typing import BinaryIO, Final

import msgspec

from worker.files.tabular import shown
from worker.files.xlsx.cells import EPOCH_1900, EPOCH_1904, CellReader
from worker.files.xlsx.formats import BUILT_IN, Shown, shown_as
from worker.files.xlsx.package import Package, Relation
from worker.files.xlsx.rows import Row, read_rows
from worker.files.xlsx.strings import SharedStrings
from worker.files.xlsx.xml import BrokenPart, Handler, OtherFormat, read_whole

_LONGEST_PART: Final = 64 << 20
"""Bytes of the list of sheets, or of all styles; some workbooks have 65,490 styles."""
_MOST_SHARED_TEXT: Final = 256 << 20
"""Unpacked bytes of the table of shared strings, which is held in memory."""
_MOST_SHEETS: Final = 10_000
_MOST_STYLES: Final = 1_000_000
_LONGEST_CODE: Final = 255
"""Characters of a format code, as in Excel: the time to parse one is quadratic in its length."""
_HIDDEN: Final = frozenset({"hidden", "veryhidden"})
_TRUE: Final = frozenset({"1", "true", "on"})
_OTHER_KINDS: Final = {
    "chartsheet": "it is a chart",
    "dialogsheet": "it is a dialog",
    "xlmacrosheet": "it is a sheet of macros",
    "xlintlmacrosheet": "it is a sheet of macros",
}


class Sheet(msgspec.Struct, frozen=True):
    """A sheet that the workbook lists. `fault` says why it has no rows to read; None if it has."""

    title: str
    hidden: bool
    part: str
    fault: str | None


class Book:
    """An open workbook. Its methods raise the exceptions in `worker.files.xlsx.package.BROKEN`."""

    def __init__(self, file: BinaryIO) -> None:
        self._package = Package(file)
        self._part = self._main_part()
        self._relations = self._package.relations(self._part)
        found = _Workbook()
        with self._package.open(self._part) as member:
            read_whole(member, found, _LONGEST_PART)
        if not found.sheets:
            raise OtherFormat("it lists no sheets; name a workbook")
        self.sheets = [self._sheet(*one) for one in found.sheets]
        self._meaning = CellReader(self._shared(), self._styles(), found.epoch)

    def rows(self, sheet: Sheet) -> Generator[Row, None, None]:
        """The rows of a sheet that has no `fault`, in order. Rows before a damage are yielded."""
        with self._package.open(sheet.part) as member:
            yield from read_rows(member, self._meaning)

    def _main_part(self) -> str:
        related = [
            r.target for r in self._package.relations("").values() if r.kind == "officeDocument"
        ]
        found = self._package.find(*related, "xl/workbook.xml", "xl/workbook.bin", "content.xml")
        if found is None:
            raise OtherFormat("it is another kind of ZIP archive; name a workbook")
        if found.endswith("content.xml"):
            raise OtherFormat("it is an OpenDocument file (.ods); save it as .xlsx")
        if found.lower().endswith(".bin"):
            raise OtherFormat("it is a binary workbook (.xlsb); save it as .xlsx")
        return found

    def _sheet(self, title: str, state: str, id_: str) -> Sheet:
        relation = self._relations.get(id_)
        part = None
        if relation is None:
            fault: str | None = "the workbook does not say where it is"
        else:
            part = self._find(relation)
            missing = None if part else f"{shown(relation.target)} is not in the file"
            fault = _OTHER_KINDS.get(relation.kind.lower(), missing)
        return Sheet(shown(title), state.lower() in _HIDDEN, part or "", fault)

    def _find(self, relation: Relation) -> str | None:
        """Find a part by its target, which some programs write relative to the root."""
        folder = self._part.rpartition("/")[0] + "/"
        return self._package.find(relation.target, relation.target.removeprefix(folder))

    def _named(self, kind: str, usual: str) -> str | None:
        related = [r for r in self._relations.values() if r.kind == kind]
        return self._find(related[0]) if related else self._package.find(usual)

    def _shared(self) -> SharedStrings:
        part = self._named("sharedStrings", "xl/sharedStrings.xml")
        if part is None:
            return SharedStrings()
        if self._package.size(part) > _MOST_SHARED_TEXT:
            raise BrokenPart(f"{self._package.size(part)} bytes of shared strings are too many")
        with self._package.open(part) as member:
            return SharedStrings(member)

    def _styles(self) -> dict[str, Shown]:
        part = self._named("styles", "xl/styles.xml")
        found = _Styles()
        if part is not None:
            with self._package.open(part) as member:
                read_whole(member, found, _LONGEST_PART)
        return found.by_style()


class _Workbook(Handler):
    """Collects title, state and relation of each sheet, and the epoch."""

    def __init__(self) -> None:
        self.sheets: list[tuple[str, str, str]] = []
        self.epoch: datetime = EPOCH_1900

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "workbookPr" and attributes.get("date1904", "").lower() in _TRUE:
            self.epoch = EPOCH_1904
        elif tag == "sheet":
            if len(self.sheets) >= _MOST_SHEETS:
                raise BrokenPart(f"more than {_MOST_SHEETS} sheets")
            related = [text for name, text in attributes.items() if name.endswith(":id")]
            get = attributes.get
            self.sheets.append((get("name", ""), get("state", ""), "".join(related[:1])))


class _Styles(Handler):
    """Collects the number formats of the styles of cells."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}
        self._formats: list[str] = []
        self._cells = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "numFmt":
            id_ = attributes.get("numFmtId", "")
            self._codes[id_] = attributes.get("formatCode", "")[:_LONGEST_CODE]
        elif tag == "cellXfs":
            self._cells = True
        elif tag == "xf" and self._cells:
            self._formats.append(attributes.get("numFmtId", ""))
        if len(self._codes) + len(self._formats) > _MOST_STYLES:
            raise BrokenPart("too many styles")

    def end(self, tag: str) -> None:
        if tag == "cellXfs":
            self._cells = False

    def by_style(self) -> dict[str, Shown]:
        """How numbers show, by the number of the style as a cell spells it."""
        used = self._codes.keys() & set(self._formats)
        own = {id_: shown_as(self._codes[id_]) for id_ in used}
        built_in = {str(id_): what for id_, what in BUILT_IN.items()}
        known = {id_: what for id_, what in (built_in | own).items() if what is not None}
        return {str(n): known[id_] for n, id_ in enumerate(self._formats) if id_ in known}
