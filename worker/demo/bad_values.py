"""Values that the specification forbids in a field. `worker.demo.faults` puts them into records."""

from collections.abc import Mapping
from typing import Final

_NOT_TEXT: Final[tuple[object, ...]] = (7, True, ["x"], {"value": "x"})
_NOT_WHOLE: Final[tuple[object, ...]] = ("60", 1.0, True, 12.5, [60])
WRONG_TYPE: Final[Mapping[str, tuple[object, ...]]] = {
    "uuid": (42, True, ["550e8400-e29b-41d4-a716-446655440000"]),
    "email": _NOT_TEXT,
    "name": _NOT_TEXT,
    "text": _NOT_TEXT,
    "enum": _NOT_TEXT,
    "time": (1705312800, 1705312800.5, ["2024-01-15T10:00:00Z"]),
    "positive": _NOT_WHOLE,
    "count": _NOT_WHOLE,
    "rating": ("0.85", True, [0.9]),
    "texts": ("hiking", '["hiking"]', {"0": "hiking"}, ["hiking", 7], ["hiking", None]),
    "goals": ("[4,8]", 4, ["4"], [4, 8.0], [True]),
    "object": ('{"q1":"yes"}', ["yes"], 3, True),
}
INVALID_TIMES: Final = (
    "2024-02-30T10:00:00Z", "2024-13-01T10:00:00Z", "2024-01-15T25:00:00Z", "15/01/2024 10:00",
    "2024-01-15", "2024-01-15T10:00Z", "yesterday", "1705312800", "2024-01-15T10:00:00+24:00",
    "0001-01-01T00:00:00+01:00", "2023-02-29T08:00:00Z", "20240115T100000Z", "0000-01-01T00:00:00Z",
)  # fmt: skip
INVALID_ENUMS: Final = (
    "unknown", "n/a", "Participant", "BUDDY", "ACTIVE", "in_person", "Other", "paused", "buddy ",
)  # fmt: skip
"""None of these is a value of any enum in the specification."""

INVALID_EMAILS: Final = (
    "{}.example.org", "@example.org", "{}@", "{}@@example.org", "{} x@example.org",
    "{}@example..org", "{}@-example.org", "{}@example-.org", "{}@exam_ple.org", "{}@example.org.",
    "{}@example.org ", "x{0}{0}{0}{0}{0}{0}@example.org", "{0}@" + "{0}." * 20 + "org",
)  # fmt: skip
_TOO_LARGE: Final = 2**53
OUT_OF_RANGE: Final[Mapping[str, tuple[object, ...]]] = {
    "positive": (0, -1, -90, _TOO_LARGE),
    "count": (-1, -25, _TOO_LARGE),
    "goals": ([0], [4, 18], [-3, 8], [4, _TOO_LARGE]),
}
