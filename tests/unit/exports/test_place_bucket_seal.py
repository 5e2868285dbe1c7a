"""A seal that is no seal is named, whatever stands in its object."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.unit.place_kit import ID
from worker.errors import StateError
from worker.exports.places.bucket import BucketPlace
from worker.exports.places.objects import Bucket


class OneObject:
    """A bucket in which each object has the same content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, _name: str) -> bytes:
        return self.content

    def url(self, name: str = "") -> str:
        return f"s3://bucket/{name}"

    def now(self) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    "content",
    [b"no JSON", b'{"more": ' + b"[" * 5000, b'{"name": "\xff"}'],
    ids=["text", "nested", "encoding"],
)
def test_what_is_no_seal_is_named(content: bytes, tmp_path: Path) -> None:
    place = BucketPlace(cast("Bucket", OneObject(content)), tmp_path)
    with pytest.raises(StateError, match=rf"s3://bucket/\.seals/{ID}\.json is no seal"):
        place.sealed(ID)
