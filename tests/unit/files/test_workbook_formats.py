"""Which number formats of a workbook show a date, or a duration."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.unit.files.excel_kit import STYLES, excel, row, strings
from worker.files.workbook import read_workbook
from worker.files.xlsx.formats import Shown, shown_as

BUILT_IN_DATES = (*range(14, 23), *range(27, 37), 45, 47, *range(50, 59), *range(71, 79), 80, 81)


def test_built_in_formats_of_dates(tmp_path: Path) -> None:
    ids = range(83)
    styles = STYLES.partition("<cellXfs")[0] + "<cellXfs>"
    styles += "".join(f'<xf numFmtId="{id_}"/>' for id_ in ids) + "</cellXfs></styleSheet>"
    cells = [f'<c r="A{n}" s="{n - 2}"><v>45306.5</v></c>' for n in range(2, 85)]
    rows = strings(1, "submitted_at") + "".join(row(n, cell) for n, cell in enumerate(cells, 2))
    path = excel(tmp_path / "x.xlsx", {"Feedback": rows}, parts={"xl/styles.xml": styles.encode()})
    found = [msgspec.json.decode(r.value)["submitted_at"] for r in read_workbook(path, None)]
    assert [n for n in ids if found[n] == "2024-01-15T12:00:00"] == [*BUILT_IN_DATES]
    assert {found[n] for n in ids if n not in BUILT_IN_DATES} == {
        "45306.5",
        "45306 days, 12:00:00",
    }


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("General", None),
        ("0.00E+00", None),
        ("#,##0.00\\ [$kr-41D]", None),
        ('0 "days"', None),
        ("0\\d", None),
        ("0_d", None),
        ("* 0;[Red]-0", None),
        ("[Red][<100]0.00;@", None),
        ("0%", None),
        ("@", None),
        ("", None),
        ('0;"d";dd', None),
        ("yyyy-mm-dd", Shown.DATE),
        ("[$-F800]dddd\\,\\ mmmm\\ dd\\,\\ yyyy", Shown.DATE),
        ('[$-411]ggge"年"m"月"d"日"', Shown.DATE),
        ("[$-1070000]d/m/bbbb", Shown.DATE),
        ('yyyy"年"m"月"', Shown.DATE),
        ("mm:ss.0;@", Shown.DATE),
        ("AM/PM h", Shown.DATE),
        ("[h]:mm:ss", Shown.DURATION),
        ("[SS].00", Shown.DURATION),
    ],
)
def test_what_a_format_shows(code: str, shown: Shown | None) -> None:
    assert shown_as(code) is shown
