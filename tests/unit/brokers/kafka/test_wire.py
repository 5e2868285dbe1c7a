"""Clients that do not start: nothing of them stays open, and a service waits for certificates."""

from __future__ import annotations

import asyncio
import struct
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from worker.brokers.kafka.errors import Attempt, describing
from worker.brokers.kafka.security import KafkaSecurity
from worker.brokers.kafka.wire import Lasting, Wire
from worker.errors import BrokerUnavailable, ConfigurationError

pytestmark = pytest.mark.timeout(30)

ATTEMPT: Attempt = describing({"t"})
API_VERSIONS = 18
METADATA = 3


class Silent:
    """A broker that says which requests it knows, and answers none of them."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """It was asked for metadata."""
        self.closed = asyncio.Event()
        """The connection that asked has been closed."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(size)
                api, _version, correlation = struct.unpack_from(">hhi", request)
                if api == API_VERSIONS:
                    known = [(METADATA, 0, 5), (API_VERSIONS, 0, 0)]
                    answer = struct.pack(">ihi", correlation, 0, len(known))
                    answer += b"".join(struct.pack(">hhh", *each) for each in known)
                    writer.write(struct.pack(">i", len(answer)) + answer)
                elif api == METADATA:
                    self.asked.set()
        except asyncio.IncompleteReadError:
            self.closed.set()
        finally:
            writer.close()


@pytest.fixture
async def silent() -> AsyncIterator[tuple[Silent, Wire]]:
    broker = Silent()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield broker, Wire(f"127.0.0.1:{port}", KafkaSecurity(), "buddy")


async def _start(wire: Wire) -> None:
    await wire.start(wire.producer(), ATTEMPT)


async def _ask(wire: Wire) -> None:
    async def ask(_admin: object) -> None:
        raise AssertionError("it never starts")

    await Lasting(wire, wire.admin).ask(ATTEMPT, ask)


@pytest.mark.parametrize("call", [_start, _ask])
async def test_a_start_that_is_given_up_closes_its_connection(
    silent: tuple[Silent, Wire], call: Callable[[Wire], asyncio.Future[None]]
) -> None:
    broker, wire = silent
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        work = asyncio.ensure_future(call(wire))
        await broker.asked.wait()
        work.cancel()
        await asyncio.wait({work})
        assert work.cancelled()
        await broker.closed.wait()
    assert [str(each.message) for each in said] == []


async def test_a_certificate_that_becomes_unusable_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new client reads the files, also in the middle of their renewal."""
    file = tmp_path / "ca.pem"
    file.write_text("garbage")
    wire = Wire("127.0.0.1:1", KafkaSecurity(security_protocol="SSL", ca_file=str(file)), "buddy")
    unusable = f"kafka security: ca_file {file} cannot be used"
    with pytest.raises(ConfigurationError, match=unusable):
        await wire.probe()
    with monkeypatch.context() as reached:
        reached.setattr(wire, "_knock", AsyncMock())
        await wire.probe()
    for make in (wire.admin, wire.producer, wire.consumer):
        with pytest.raises(BrokerUnavailable, match=unusable):
            make()
    told = await wire.failure(ATTEMPT, ConnectionError("closed"))
    assert isinstance(told, BrokerUnavailable)
    assert str(told).startswith(f"cannot {ATTEMPT.words}: {unusable}")
