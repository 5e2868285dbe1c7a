"""CSV files as records."""

from __future__ import annotations

import csv
import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Kind
from tests.unit.files.stream_kit import Trickle
from worker.errors import UsageError
from worker.files import FileRecord
from worker.files.cell_json import json_string, json_value
from worker.files.csv_table import read_csv
from worker.files.lines import read_any_lines
from worker.files.tabular import column_letters, column_names, recognise

FEEDBACK = ",".join(column.name for column in ENTITIES["feedback"].columns)


def records(
    text: str | bytes, entity: str | None = "feedback", limit: int = 1 << 20
) -> list[FileRecord]:
    data = text.encode() if isinstance(text, str) else text
    chosen = None if entity is None else ENTITIES[entity]
    return list(read_csv(io.BytesIO(data), chosen, "f.csv", limit=limit))


def values(text: str | bytes, **options: Any) -> list[Any]:
    return [msgspec.json.decode(record.value) for record in records(text, **options)]


def test_comment_header_bom_and_crlf() -> None:
    text = f'\ufeff# Buddy Program Export\r\n# x,"y\r\n{FEEDBACK}\r\n'
    text += "a,,buddy,0.5,#t,,,,\r\n\r\nb,,,,,,,,\r\n"
    found = records(text)
    assert [record.value for record in found] == [
        b'{"feedback_id":"a","from_role":"buddy","rating":0.5,"feedback_text":"#t"}',
        b'{"feedback_id":"b"}',
    ]
    assert [record.line for record in found] == [4, 6]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lf_crlf_and_cr_end_a_line_and_stay_in_a_cell(end: str, size: int) -> None:
    text = end.join(["id,first_name", 'a,"x\ry\n\nz\r\n"', "", "b,\u2028\x85\x0b\x1c", ""])
    found = read_csv(Trickle(text.encode(), size), ENTITIES["users"], "f.csv")
    assert [(r.line, msgspec.json.decode(r.value)) for r in found] == [
        (2, {"id": "a", "first_name": "x\ry\n\nz\r\n"}),
        (8, {"id": "b", "first_name": "\u2028\x85\x0b\x1c"}),
    ]


def test_line_ends_may_be_mixed() -> None:
    text = "id,location\r\na,\rb,\nc,x\r\n\rd,"
    assert [(r.line, r.value) for r in records(text, entity="users")] == [
        (2, b'{"id":"a"}'),
        (3, b'{"id":"b"}'),
        (4, b'{"id":"c","location":"x"}'),
        (6, b'{"id":"d"}'),
    ]


@given(st.text(st.sampled_from("ab\r\n")), st.integers(1, 4))
def test_no_byte_is_lost_between_lines(text: str, size: int) -> None:
    found = list(read_any_lines(Trickle(text.encode(), size), 100))
    assert b"".join(line.data for line in found) == text.encode()
    assert [line.data for line in found] == text.encode().splitlines(keepends=True)
    assert [line.number for line in found] == list(range(1, len(found) + 1))


def test_a_long_line_is_measured_whatever_ends_it() -> None:
    found = list(read_any_lines(io.BytesIO(b"x" * 30 + b"\ry\r"), 10))
    assert [(line.data, line.oversize) for line in found] == [(b"x" * 10, 31), (b"y\r", 0)]


def test_columns_in_another_order_and_unknown_ones() -> None:
    text = "shoe_size,first_name,id\n42,Al,a\n"
    assert records(text, entity="users")[0].value == (
        b'{"id":"a","first_name":"Al","shoe_size":"42"}'
    )


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        (Kind.INTEGER, "20", b"20"),
        (Kind.INTEGER, "-0", b"-0"),
        (Kind.INTEGER, "1.0", b"1.0"),
        (Kind.INTEGER, "007", b'"007"'),
        (Kind.INTEGER, " 5", b'" 5"'),
        (Kind.INTEGER, "5\n", b'"5\\n"'),
        (Kind.INTEGER, "٣", '"٣"'.encode()),
        (Kind.INTEGER, "1_000", b'"1_000"'),
        (Kind.INTEGER, "true", b'"true"'),
        (Kind.RATING, "0.0000001", b"0.0000001"),
        (Kind.RATING, "1e-7", b"1e-7"),
        (Kind.RATING, ".5", b'".5"'),
        (Kind.RATING, "0,5", b'"0,5"'),
        (Kind.RATING, "NaN", b'"NaN"'),
        (Kind.TEXT, "20", b'"20"'),
        (Kind.TEXT, "null", b'"null"'),
        (Kind.TEXT, "=1+1", b'"=1+1"'),
        (Kind.ENUM, "buddy", b'"buddy"'),
        (Kind.TEXTS, '["a", 1]', b'["a", 1]'),
        (Kind.TEXTS, "[]", b"[]"),
        (Kind.TEXTS, "a", b'"a"'),
        (Kind.TEXTS, "null", b'"null"'),
        (Kind.TEXTS, "[1", b'"[1"'),
        (Kind.TEXTS, '[1],"x":[2]', b'"[1],\\"x\\":[2]"'),
        (Kind.INTEGERS, "{}", b"{}"),
        (Kind.OBJECT, '{"a":1e999}', b'{"a":1e999}'),
        (Kind.OBJECT, '{"a":"\t"}', b'"{\\"a\\":\\"\\t\\"}"'),
        (Kind.OBJECT, "[" * 50_000, b'"' + b"[" * 50_000 + b'"'),
    ],
    ids=range(28),
)
def test_a_cell_becomes_what_its_column_asks_for(kind: Kind, cell: str, value: bytes) -> None:
    assert json_value(kind, cell) == value


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_json(text: str) -> None:
    encoded = json_string(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.json.decode(encoded)
    else:
        assert msgspec.json.decode(encoded) == text


def test_bytes_that_are_no_utf8_reach_validation_as_they_are() -> None:
    assert records(b"id,first_name,interests\na,caf\xe9,[\xe9]\n", entity="users")[0].value == (
        b'{"id":"a","first_name":"caf\xe9","interests":"[\xe9]"}'
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "f.csv: the file is empty: expected a line of column names (feedback_id, match_id,"),
        ("\n\n", "f.csv: not one column"),
        ("<html><table><tr><td>id", "f.csv: is an HTML page: open it in a spreadsheet"),
        (
            "# only\n# comments\n",
            "f.csv: not one column of feedback in its first lines: expected a line of",
        ),
        ("a,b\n", "f.csv: not one column of feedback in its first lines"),
        ("a,b\n" * 100 + FEEDBACK, "f.csv: not one column of feedback in its first lines"),
        ("first_name\n", "f.csv:1: not one column of feedback"),
        ("rating,rating\n", "f.csv:1: a column is named twice"),
        (f'# c\n{FEEDBACK}\n"a\n\n', "f.csv:3: the quote that opens here is never closed"),
        (f'{FEEDBACK}\na,,,,,,,,\n"a"b,,,,,,,,\n', "f.csv:3: text follows a closing quote"),
        ("x" * 5000, "f.csv:1: a line of 5000 bytes"),
        (f'{FEEDBACK}\n"' + "x\n" * 20_000, "f.csv:2: a row that does not end"),
        ("i\0d\0,\0", "f.csv: not one column of feedback in its first lines"),
        ("sep=;\n", "f.csv: not one column of feedback in its first lines"),
        (f"sep=\n{FEEDBACK}", "f.csv: the line sep=… declares no separator"),
        (f"sep=||;\n{FEEDBACK}", "f.csv: the line sep=… declares no separator"),
        (f"SEP=x\n{FEEDBACK}", "f.csv: the line sep=… declares no separator"),
        ("rating," + "x," * 200_000, "f.csv:1: more than 200000 columns"),
        ("rating, Rating \n", "f.csv:1: a column is named twice: rating"),
    ],
)
def test_what_is_no_csv_is_named_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as error:
        records(text, limit=1_000_000 if "columns" in fault else 4000)
    assert str(error.value).startswith(fault)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "^", "~"])
@pytest.mark.parametrize("declared", ["sep=", "SEP=", '"Sep=', ""])
def test_the_header_line_tells_the_separator(separator: str, declared: str) -> None:
    declared = declared or "sep=" * (separator in "^~")
    rows = [["id", "first_name", "interests"], ["a", "x,;y", '["k", 1]'], ["b", "\t", ""]]
    out = io.StringIO()
    csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
    text = (f"{declared}{separator}\r\n" if declared else "") + out.getvalue()
    assert values(text, entity="users") == [
        {"id": "a", "first_name": "x,;y", "interests": ["k", 1]},
        {"id": "b", "first_name": "\t"},
    ]


@pytest.mark.parametrize("line", ["sep=;;;;", '"sep=;";;;', "sep=,,,"])
def test_a_declared_separator_that_a_spreadsheet_saved_again(line: str) -> None:
    separator = line.strip('"')[4]
    text = f"{line}\nid{separator}first_name\na{separator}x\n"
    assert values(text, entity="users") == [{"id": "a", "first_name": "x"}]


@pytest.mark.parametrize(
    ("header", "first"),
    [
        ("#,id,first_name", "#"),
        ('"#","id","first_name"', "#"),
        ("#id,first_name,x", "id"),
        ("# ID,first_name,x", "id"),
        ("# made by hand\n#id;first_name;x", "id"),
        ("#id,id,first_name", "#id"),
    ],
)
def test_a_header_may_start_like_a_comment(header: str, first: str) -> None:
    separator = ";" if ";" in header else ","
    text = f"{header}\n" + separator.join(["1", "2", "3"]) + "\n"
    assert values(text, entity="users")[0][first] == "1"


def test_a_comment_that_lists_the_columns_is_none_where_a_header_follows() -> None:
    text = "# id,first_name,location: see below\nid,first_name\n#1,x\nid,y\n"
    assert values(text, entity="users") == [
        {"id": "#1", "first_name": "x"},
        {"id": "id", "first_name": "y"},
    ]


def test_lines_above_the_header_are_named() -> None:
    text = 'Members, "2024"\n\n# c\nas of today,,\nid,first_name\na,x\n'
    found: list[str] = []
    stream = io.BytesIO(text.encode())
    (record,) = read_csv(stream, ENTITIES["users"], "f.csv", notice=found.append)
    assert (record.line, record.value) == (6, b'{"id":"a","first_name":"x"}')
    assert found[0] == "f.csv: left out above the header: line 1, 4"


@pytest.mark.parametrize("title", ["Role,all", "Format,CSV", "email;all of them"])
def test_a_title_that_names_a_column_is_no_header_where_a_better_one_follows(title: str) -> None:
    text = f"Report,Users\n{title}\n\nid,first_name\na,x\n"
    found: list[str] = []
    stream = io.BytesIO(text.encode())
    (record,) = read_csv(stream, ENTITIES["users"], "f.csv", notice=found.append)
    assert (record.line, record.value) == (5, b'{"id":"a","first_name":"x"}')
    assert found[0] == "f.csv: left out above the header: line 1, 2"
    assert values("role,x\nbuddy,y\nid,z\n", entity="users")[1]["role"] == "id"


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\ufeff", "\ufeff\ufeff\ufeff# c\n"])
def test_byte_order_marks_at_the_start_are_skipped(mark: str) -> None:
    assert values(f'{mark}"id",first_name\na,x\n', entity="users") == [
        {"id": "a", "first_name": "x"}
    ]


def test_characters_without_a_width_are_no_part_of_a_name_and_shown_within_one() -> None:
    text = "\u200bid\ufeff,first\u200b_name, last_name\u2060 \na,b,c\n"
    found: list[str] = []
    stream = io.BytesIO(text.encode())
    (record,) = read_csv(stream, ENTITIES["users"], "f.csv", notice=found.append)
    assert record.value.startswith(b'{"id":"a","last_name":"c",')
    assert found[-1] == "f.csv:1: no column of users, left out: first\\u200b_name"


@pytest.mark.parametrize("text", ["id\na\n\x1a", "id\na\x1a", "id\r\na\r\n\x1a\x1a"])
def test_a_control_z_at_the_end_is_none_of_the_last_row(text: str) -> None:
    assert values(text, entity="users") == [{"id": "a"}]


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1e", "\x85", "\u2028"])
def test_other_characters_end_no_line(end: str) -> None:
    with pytest.raises(UsageError, match=r"f\.csv:1: a column name holds a control character"):
        records(f"id,location{end}a,Oslo{end}", entity="users")


def test_a_name_that_is_no_utf8_spoils_no_row() -> None:
    found: list[str] = []
    stream = io.BytesIO("id,Gr\xf6\xdfe\na,1\n".encode("latin-1"))
    (record,) = read_csv(stream, ENTITIES["users"], "f.csv", notice=found.append)
    assert msgspec.json.decode(record.value) == {"id": "a", "Gr\\udcf6\\udcdfe": "1"}
    assert found[-1] == "f.csv:1: no column of users, left out: Gr\\xf6\\xdfe"


@pytest.mark.parametrize(
    ("separator", "cell", "points"),
    [
        (",", "100.0", 100),
        (",", "-1.00", -1),
        (",", "1.000", 1),
        (",", "0.000000", 0),
        (",", "100.5", 100.5),
        (",", "01.0", "01.0"),
        (",", "100.", "100."),
        (",", "1e2", 1e2),
        (",", '"1,000"', "1,000"),
        (";", "100,0", 100),
        (";", "100.00", 100),
        (";", "1.000", 1.0),
        (";", "1,000", "1,000"),
        (";", "1.000.000", "1.000.000"),
    ],
)
def test_a_whole_number_with_decimals_is_an_integer(
    separator: str, cell: str, points: object
) -> None:
    text = f"milestone_id{separator}points\n1{separator}{cell}\n"
    found = values(text, entity="milestones")[0]["points"]
    assert (type(found), found) == (type(points), points)


@pytest.mark.thorough
def test_many_columns_take_no_more_than_their_share() -> None:
    """A look at all columns for each column would take longer than the time limit of a test."""
    names = ",".join(f"c{n}" for n in range(100_000))
    (record,) = records(f"id,{names}\na{',x' * 100_000}\n", entity="users", limit=8 << 20)
    assert recognise([*names.split(","), *FEEDBACK.split(",")]) is ENTITIES["feedback"]
    assert len(msgspec.json.decode(record.value)) == 1 + 1_000, "id, and not all that is unknown"


def test_what_rows_hold_never_tells_the_separator() -> None:
    assert values("id\na;b;c\n", entity="users") == [{"id": "a;b;c"}]
    assert values("first_name;id\na,b,c,d;1\n", entity="users") == [
        {"id": "1", "first_name": "a,b,c,d"}
    ]


def test_a_comment_header_that_a_spreadsheet_saved_again() -> None:
    text = '# Buddy Program Export;;\r\n"# Program; so called";;\r\n;;\r\nrating;feedback_id;\r\n'
    assert values(text + "0,85;a;\r\n;;\r\n1;b;\r\n;;\r\n") == [
        {"feedback_id": "a", "rating": 0.85},
        {"feedback_id": "b", "rating": 1},
    ]


def test_a_decimal_comma_is_one_where_the_comma_separates_nothing() -> None:
    text = "rating{0}feedback_id{0}feedback_text\n{1}{0}0,5{0}0,5\n"
    for cell, rating in {"0,5": 0.5, '"-0,50"': -0.5, "0,5,5": "0,5,5", ",5": ",5"}.items():
        assert values(text.format(";", cell))[0]["rating"] == rating
    assert values(text.format("\t", "1,0"))[0] == {
        "feedback_id": "0,5",
        "rating": 1.0,
        "feedback_text": "0,5",
    }
    assert values('rating,feedback_id\n"0,5",a\n')[0]["rating"] == "0,5"


def test_names_with_blanks_and_capitals() -> None:
    text = " ID ,\u00a0First_Name,E-Mail,E-Mail\na,b,c,d\n"
    found: list[str] = []
    stream = io.BytesIO(text.encode())
    (record,) = read_csv(stream, ENTITIES["users"], "f.csv", notice=found.append)
    assert msgspec.json.decode(record.value) == {"id": "a", "first_name": "b", "E-Mail": "c"}
    assert found == [
        "f.csv:1: no column email, last_name, role, joined_at, which users must have",
        "f.csv:1: no column of users, left out: E-Mail",
    ]


def test_rows_that_are_shorter_or_longer_than_the_header() -> None:
    text = "id,,first_name,\na\nb,,c,,,\nd,x,e\nf,,g,,\u00e9\n,, ,\nh,,i\n"
    found = records(text, entity="users")
    assert [(r.line, r.value, r.fault) for r in found] == [
        (2, b'{"id":"a"}', None),
        (3, b'{"id":"b","first_name":"c"}', None),
        (4, b'["d","x","e"]', "expected nothing in column B, which has no name"),
        (
            5,
            '["f","","g","","é"]'.encode(),
            "expected nothing in column E, which has no name",
        ),
        (7, b'{"id":"h","first_name":"i"}', None),
    ]


def test_the_letters_of_columns() -> None:
    found = [column_letters(n) for n in (0, 25, 26, 51, 52, 701, 702, 16383)]
    assert found == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA", "XFD"]


def test_the_names_of_a_header() -> None:
    assert column_names([" Id\t", None, True, "x y", "", None]) == ["id", "", "", "x y"]


def test_columns_tell_the_entity() -> None:
    for entity in ENTITIES.values():
        assert recognise([column.name for column in entity.columns]) is entity
        required = [column.name for column in entity.columns if column.required]
        assert recognise([*reversed(required), "other"]) is entity
    assert recognise([]) is None
    assert recognise(["id", "email"]) is None
    both = {c.name for name in ("users", "matches") for c in ENTITIES[name].columns}
    assert recognise(sorted(both)) is ENTITIES["matches"]
    assert [record.entity for record in records(FEEDBACK + "\na,,,,,,,,\n", None)] == ["feedback"]
    with pytest.raises(UsageError, match="--entity"):
        records("id,email\n", None)


@given(st.binary())
def test_whatever_comes_in_nothing_else_goes_wrong(data: bytes) -> None:
    for start in (b"", FEEDBACK.encode() + b"\n"):
        try:
            records(start + data)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017, both outcomes are right
