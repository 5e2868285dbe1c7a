"""The table of shared strings, in one block of bytes: a workbook may have millions of strings."""

from __future__ import annotations

import re
from array import array
from typing import Final

from worker.files.xlsx.escapes import from_excel
from worker.files.xlsx.xml import TEXT, BrokenPart, ItemHandler, OpenPart, read_items

_MOST_STRINGS: Final = 16_000_000
_PLAIN: Final = re.compile(rf'\s*<si><t(?: xml:space="preserve")?>({TEXT})</t>\Z')


class SharedStrings(ItemHandler):
    """The shared strings by number."""

    container = "sst"
    item = "si"

    def __init__(self, part: OpenPart | None = None) -> None:
        """Read the table. Raises BrokenPart, or ExpatError for invalid XML."""
        self._data = bytearray()
        self._ends = array("L", [0])
        self._collecting = self._phonetic = False
        if part is not None:
            for _ in read_items(part, self):
                pass

    def __getitem__(self, index: str) -> str:
        """The string with that number, as a cell spells it. BrokenPart if it does not exist."""
        try:
            number = int(index)
        except ValueError:
            raise BrokenPart("a cell refers to a shared string by what is no number") from None
        if not 0 <= number < self.taken:
            raise BrokenPart(f"a cell refers to shared string {number} of {self.taken}")
        text = self._data[self._ends[number] : self._ends[number + 1]].decode()
        return from_excel(text) if "_x" in text else text

    def take_plain(self, text: str) -> bool:
        """Take one string without its end tag, if it is nothing but text."""
        found = _PLAIN.match(text)
        if found is not None:
            self._data += found[1].encode()
            self._finish()
        return found is not None

    def start(self, tag: str, _: dict[str, str]) -> None:
        """As Handler. The phonetic reading of a string is not part of its text."""
        if tag == self.container and not self.inside:
            self.inside = self.depth
        elif tag == "t":
            self._collecting = not self._phonetic
        elif tag == "rPh":
            self._phonetic = True

    def text(self, text: str) -> None:
        """As Handler."""
        if self._collecting:
            self._data += text.encode()

    def end(self, tag: str) -> None:
        """As Handler."""
        if tag == "t":
            self._collecting = False
        elif tag == "rPh":
            self._phonetic = False
        elif tag == "si":
            self._finish()

    def _finish(self) -> None:
        self.taken += 1
        if self.taken > _MOST_STRINGS:
            raise BrokenPart("too many shared strings")
        self._ends.append(len(self._data))
