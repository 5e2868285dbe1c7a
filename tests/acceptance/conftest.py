"""A `buddy` for each test: on the embedded broker in its directory, or on Kafka by its prefix."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.kit import Another, Buddy


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def kind(request: pytest.FixtureRequest) -> str:
    """Which broker: whoever asks for it runs once on each."""
    name: str = request.param
    return name


@pytest.fixture
def another(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Another]:
    """Makes fresh places, each with topics of its own on the broker of this test."""
    made: list[Buddy] = []

    def make(**settings: Any) -> Buddy:
        directory = tmp_path / f"place-{len(made)}"
        if kind == "embedded":
            buddy = Buddy(directory, **settings)
        else:
            address: str = request.getfixturevalue("kafka_address")
            prefix = f"a{uuid.uuid4().hex[:10]}"
            buddy = Buddy(directory, f"kafka://{address}", prefix, **settings)
        made.append(buddy)
        return buddy.create_topics(partitions=2 if kind == "kafka" else 3)

    yield make
    for buddy in made:
        buddy.stop_all()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Buddy]:
    """On an embedded broker that does not exist yet, for what does not depend on the broker."""
    buddy = Buddy(tmp_path / "local")
    yield buddy
    buddy.stop_all()
