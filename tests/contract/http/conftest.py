"""What every test of the HTTP API stands on: topics, and the API on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.broker_kit import Another
from tests.contract.desk_kit import Desk
from tests.contract.http_kit import Served, kept, served
from tests.contract.worker_kit import MovingClock, Stage
from worker.brokers.contract import Broker
from worker.exports.places.directory import DirectoryPlace

TASKS = 2


@pytest.fixture
def clock() -> MovingClock:
    return MovingClock()


@pytest.fixture
async def stage(broker: Broker, another: Another, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = await Stage(broker, another, tmp_path).prepare(TASKS)
    yield stage
    await stage.close()


@pytest.fixture
async def http(stage: Stage, another: Another, tmp_path: Path) -> AsyncIterator[Served]:
    place = DirectoryPlace(tmp_path / "exports")
    async with served(await another(), stage.names, place=place) as found:
        yield found


@pytest.fixture
def desk(broker: Broker, stage: Stage, tmp_path: Path) -> Desk:
    return Desk(broker, stage.names, tmp_path / "desk")


@pytest.fixture
async def beside_a_desk(desk: Desk, another: Another) -> AsyncIterator[Served]:
    """The API, and somebody who keeps the store of rejections."""
    broker = await another()
    async with (
        kept(broker, desk.names, desk.directory),
        served(broker, desk.names, desk=desk.directory) as found,
    ):
        yield found
