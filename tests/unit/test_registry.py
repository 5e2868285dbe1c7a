"""The registry of entities: what it refuses."""

from __future__ import annotations

import msgspec
import pytest

from schemas import ENTITIES
from schemas.registry import _column


def test_a_column_that_is_not_there_is_a_key_error() -> None:
    assert ENTITIES["users"].column("id").name == "id"
    with pytest.raises(KeyError, match="nothing"):
        ENTITIES["users"].column("nothing")


def test_a_field_of_a_type_that_no_column_has_is_a_type_error() -> None:
    class Odd(msgspec.Struct):
        some: set[int]

    (field,) = msgspec.inspect.type_info(Odd).fields  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="field some: no kind"):
        _column(field, set[int])
