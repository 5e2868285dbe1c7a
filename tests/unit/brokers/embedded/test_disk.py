"""A disk that fails makes SQLite report a damaged log: it is an outage, and no damage."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.embedded_kit import opened
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.store import FILE_NAME
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Partition, ProducerRecord, Topic

LOG = Partition("log", 0)
PAGE = 4096


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the disk refuse every new file with an I/O error from now on."""

    def refuse(**_options: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    return lambda: monkeypatch.setattr(tempfile, "TemporaryFile", refuse)


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    """A closed log; its records fill pages of their own."""
    async with opened(tmp_path / "broker") as broker:
        await broker.create([Topic("log", 1)])
        await broker.publish([ProducerRecord("log", b"k", os.urandom(100 * PAGE))])
    return tmp_path / "broker"


def garble(path: Path, start: int) -> None:
    """Overwrite all from `start` on."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (size - start))


async def test_a_log_that_cannot_be_opened_is_damaged_only_if_its_disk_answers(
    log: Path, fail: Callable[[], None]
) -> None:
    garble(log / FILE_NAME, 0)
    with pytest.raises(DamagedLog, match="is damaged or not a log"):
        await EmbeddedBroker(log).open()
    fail()
    with pytest.raises(BrokerUnavailable, match=r"The disk of .* failed \(") as caught:
        await EmbeddedBroker(log).open()
    assert "\n" not in str(caught.value)


async def test_records_that_cannot_be_read_are_damaged_only_if_the_disk_answers(
    log: Path, fail: Callable[[], None]
) -> None:
    async with opened(log) as broker:
        garble(log / FILE_NAME, (log / FILE_NAME).stat().st_size // 2)
        fail()
        reader = broker.reader()
        reader.assign({LOG: 0})
        with pytest.raises(BrokerUnavailable, match=r"The disk of .* failed \("):
            await reader.read(1, 0)
        assert reader.damaged() == {}
        with pytest.raises(BrokerUnavailable, match=r"The disk of .* failed \("):
            await broker.inspection.verify(lambda _size: None)


async def test_a_file_that_cannot_be_made_on_a_disk_that_fails_is_an_outage(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(log) as broker:

        def refuse(*_arguments: Any, **_options: Any) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Path, "mkdir", refuse)
        with pytest.raises(BrokerUnavailable, match=r"The disk of .* failed \(Input/output error"):
            await broker.join("group", "log")
