"""What every test of a worker stands on: a moving clock, and a stage with tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.broker_kit import Another
from tests.contract.worker_kit import MovingClock, Stage
from worker.brokers.contract import Broker


@pytest.fixture
def clock() -> MovingClock:
    return MovingClock()


@pytest.fixture
async def stage(
    broker: Broker, another: Another, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    """Topics with `TASKS` partitions, as the test's module has it."""
    stage = await Stage(broker, another, tmp_path).prepare(request.module.TASKS)
    yield stage
    await stage.close()
