"""Why bytes are not a record, in words for their sender: where, and what kind of content is there.

The content itself is never quoted: a message must not hold personal data.
"""

from __future__ import annotations

import json
import re
from typing import Final

_WANTED: Final = {
    "Expecting property name enclosed in double quotes": "a name in double quotes",
    "Illegal trailing comma before end of object": "a name after the comma",
    "Illegal trailing comma before end of array": "a value after the comma",
    "Expecting ':' delimiter": "a colon",
    "Expecting ',' delimiter": "a comma or a closing bracket",
    "Expecting value": "a value",
    "Extra data": "nothing after the JSON object",
    "Invalid control character at": "control characters in strings to be escaped",
    "Invalid \\escape": "a known escape after the backslash",
    "Invalid \\uXXXX escape": "four hexadecimal digits after \\u",
}
"""What Python's json module expects, by its error message."""

_CONSTANT: Final = re.compile("-?Infinity|NaN|None|True|False|undefined")
_CHARACTERS: Final = {
    '"': "a double quote",
    "'": "an apostrophe",
    "{": "an opening brace",
    "}": "a closing brace",
    "[": "an opening bracket",
    "]": "a closing bracket",
    ",": "a comma",
    ":": "a colon",
    "\n": "a line end",
    "\r": "a line end",
    "\0": "a NUL byte, as UTF-16 and UTF-32 have them,",
    "\ufeff": "a byte order mark",
}
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
_LOOKED_AT: Final = 64 * 1024
_MARKS: Final = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "gzip"),
)


class _ConstantError(ValueError):
    """NaN or infinity, which are not JSON."""


def _refuse(constant: str) -> object:
    raise _ConstantError(constant)


_decode: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse).decode


def not_json(text: str) -> str:
    """Why a text is not JSON. Raises RecursionError if it is nested too deeply."""
    try:
        _decode(text)
    except json.JSONDecodeError as error:
        return _not_json(text, error)
    except _ConstantError as error:
        return f"expected JSON, found {error}, which is no JSON number"
    # Lone surrogates are the only invalid content that the json module accepts.
    return "expected JSON, found half of a surrogate pair"


def _not_json(text: str, error: json.JSONDecodeError) -> str:
    at = error.pos
    if error.msg.startswith("Unterminated string"):
        start = _offset(text, at)
        return f"expected JSON, found the end of the record in the string at byte offset {start}"
    wanted = _WANTED.get(error.msg, "JSON")
    return f"expected {wanted}, found {_found(text, at)} at byte offset {_offset(text, at)}"


def _offset(text: str, at: int) -> int:
    return len(text[:at].encode())


def _found(text: str, at: int) -> str:
    if at >= len(text):
        return "the end of the record"
    if constant := _CONSTANT.match(text, at):
        return constant[0]
    character = text[at]
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if not character.isascii():
        return "a character beyond ASCII"
    if character.isalpha():
        return "a letter"
    if character.isdigit():
        return "a digit"
    return "a punctuation mark" if character.isprintable() else "a control character"


def not_utf8(value: bytes, error: UnicodeDecodeError) -> str:
    """Where bytes stop being UTF-8, and which encoding they resemble."""
    return f"expected UTF-8, found other bytes at byte offset {error.start}: {_looks(value, error)}"


def _looks(value: bytes, error: UnicodeDecodeError) -> str:
    for mark, name in _MARKS:
        if value.startswith(mark):
            return f"this looks like {name}"
    if error.reason == "unexpected end of data":
        return "the last character is cut off"
    if value[error.start] == 0xED and error.start + 1 < len(value):
        return "this looks like CESU-8, with surrogates written one by one"
    start = value[:_LOOKED_AT] if error.start < _LOOKED_AT else value[error.start :][:_LOOKED_AT]
    if start.count(0) * 4 > len(start):
        return "this looks like UTF-16"
    runs = _HIGH.findall(start)
    if sum(map(len, runs)) > 2 * len(runs):
        return "this looks like Windows-1251, GB 18030, Shift JIS or another of these"
    return "this looks like Windows-1252 or ISO 8859-1"


def json_type(value: object) -> str:
    """The type of a JSON value that is not an object, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "a number"
