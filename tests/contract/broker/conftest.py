"""The suite of the contract itself runs over the broker of the simulation as well."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["embedded", "memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
