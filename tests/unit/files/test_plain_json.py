"""Plain JSON documents, as the HTTP API reads them: bytes in any pieces, and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import UsageError
from worker.files.encodings import ChunkStream
from worker.files.json_document import read_plain

values = st.recursive(
    st.none() | st.integers() | st.text('"\\{}[]a\n', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('"{}[]\\'), inner),
    max_leaves=12,
)
objects = st.lists(st.dictionaries(st.text('"{}[]\\', max_size=3), values, max_size=3), max_size=5)


def read(pieces: Iterator[bytes]) -> list[bytes]:
    return [record.value for record in read_plain(ChunkStream(pieces), "users", "body")]


@given(objects, st.booleans(), st.integers(1, 40), st.sampled_from(["", " ", "\n"]))
def test_every_object_comes_byte_for_byte(
    wanted: list[object], is_array: bool, size: int, between: str
) -> None:
    texts = [json.dumps(one) for one in wanted]
    text = f"[{between}{f',{between}'.join(texts)}]" if is_array else between.join(texts)
    content = text.encode()
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    assert read(iter(pieces)) == [one.encode() for one in texts]


@pytest.mark.parametrize(
    ("start", "more", "why"),
    [
        (b"[", b"[" * 1000, "expected {, found \\["),
        (b"", b"[" * 1000, "expected {, found \\["),
        (b"[{},", b"[],", "expected {, found \\["),
        (b"", b"{" * 1000, "nested too deeply"),
        (b"", b'{"a":' * 1000, "nested too deeply"),
        (b'[{"a":', b"[{" * 1000, "nested too deeply"),
        (b'{"a":', b'[["]",' * 1000, "nested too deeply"),
    ],
)
def test_what_can_be_no_record_ends_the_reading_at_once(
    start: bytes, more: bytes, why: str
) -> None:
    """The body has no end, so only what is found at its start ends it."""

    def body() -> Iterator[bytes]:
        yield start
        yield from repeat(more)

    with pytest.raises(UsageError, match=f"^body:1: .*{why}"):
        read(body())


@pytest.mark.parametrize("depth", [100, 101])
def test_brackets_may_be_nested_a_hundred_deep(depth: int) -> None:
    content = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    if depth <= 100:
        assert read(iter([content])) == [content]
    else:
        with pytest.raises(UsageError, match="nested too deeply"):
            read(iter([content]))
