"""The field types that the entities share, each with its limits.

A field's type determines decoding, allowed values and the violation code of an invalid value
(`worker.core.rules`). CSV cells, XLSX cells and the JSON Schema follow from the same type. Rules:
docs/spec.md, "Field Specifications" and docs/contract.md, "Violations".
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

LARGEST_INTEGER: Final = 2**53 - 1
"""JSON and XLSX readers lose digits above this value."""

# str, not uuid.UUID: msgspec would also read 32 digits without hyphens as a UUID. The pattern is
# the canonical form (lower case); the rules and the JSON Schema accept any case.
_UUID = Annotated[
    str,
    Meta(
        min_length=36,
        max_length=36,
        pattern="^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
        extra={"format": "uuid"},
    ),
]
Id = Annotated[_UUID, Meta(description="UUID v4")]
UserId = Annotated[_UUID, Meta(description="UUID v4 of a user", extra={"refers_to": "users"})]
MatchId = Annotated[_UUID, Meta(description="UUID v4 of a match", extra={"refers_to": "matches"})]
Timestamp = Annotated[datetime, Meta(description="ISO 8601, not in the future")]
Text = Annotated[str, Meta(description="text")]
Name = Annotated[str, Meta(max_length=100, description="text of at most 100 characters")]
Email = Annotated[
    str,
    Meta(
        max_length=254,
        description="e-mail address, unique, lower case",
        extra={"format": "email"},
    ),
]
Rating = Annotated[float, Meta(ge=0, le=1, description="0.00 to 1.00")]
Positive = Annotated[int, Meta(ge=1, le=LARGEST_INTEGER, description="positive integer")]
Count = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER, description="integer of 0 or more")]
SdgGoal = Annotated[int, Meta(ge=1, le=17, description="UN SDG goal, 1 to 17")]

Texts = list[str]
SdgGoals = list[SdgGoal]
Attendees = Annotated[list[str], Meta(extra={"names": "users"})]
"""Free text that should hold user ids. An unknown id is a warning; no record waits for it."""
FreeObject = dict[str, Any]

Role = Literal["participant", "buddy"]
Format = Literal["in-person", "online", "hybrid"]


class Row(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Base of the eight entities: fields in the column order of the specification.

    Absent optional fields are None and are omitted from the encoding. Unknown fields are forbidden
    so that the decoder notices them; `worker.core.decode` then drops and counts them.
    """
