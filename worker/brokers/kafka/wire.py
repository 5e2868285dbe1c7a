"""Creates, bounds and discards the aiokafka clients of the Kafka broker.

aiokafka has no types, hence `Any`. This module fills two of its gaps. aiokafka does not say why it
cannot connect, and an abandoned client continues its work until it is stopped.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from worker.brokers.kafka.errors import (
    FAILURES,
    Attempt,
    causes,
    explain,
    is_outage,
    is_permanent,
    refused,
    translate,
)
from worker.brokers.kafka.security import KafkaSecurity
from worker.errors import BrokerUnavailable, BuddyError, ConfigurationError
from worker.stream import Partition

T = TypeVar("T")

Diagnose = Callable[[Attempt, BaseException], Awaitable[BuddyError]]
"""Returns the exception for a failure; asks the broker where the failure says too little."""

CALL_SECONDS = 10.0
"""The longest that one call may take."""

START_SECONDS = 20.0
"""The longest that a client may take to start; a writer may have to abort another's transaction."""

STOP_SECONDS = 5.0
"""The longest that a client may take to stop: after an outage `stop()` would hang."""

DIAGNOSIS_SECONDS = 2.0
"""The longest that a diagnosis may take: the caller has waited long enough for the failure."""

REQUEST_MILLISECONDS = 5_000
RETRY_SECONDS = 0.2

COMPRESSION: str | None = None
"""The compression of batches: none, until a measurement justifies one."""

BATCH_CEILING = 64 * 1024 * 1024
"""Larger than any batch: `batches` limits a batch by its topic's limit, so aiokafka need not."""


class Wire:
    """Creates the clients of one cluster, with its address, security and common settings."""

    def __init__(self, bootstrap: str, security: KafkaSecurity, client_id: str) -> None:
        self.bootstrap = bootstrap
        self._security = security
        self.client_id = client_id
        self._was_reached = False
        self._knocking = asyncio.Lock()
        self._knocked = 0.0
        self._refusal: str | None = None

    async def probe(self) -> None:
        """Connect and log in once, to learn why a connection fails: aiokafka does not tell.

        Raises `BrokerUnavailable`. Raises `ConfigurationError` if the broker refuses the login or
        its certificate is not accepted.
        """
        last: BaseException = TimeoutError()
        for host, port in self._hosts():
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    await self._knock(host, port)
            except FAILURES as error:
                refusal = _refusal(error)
                if refusal is not None:
                    raise ConfigurationError(f"Kafka at {host}:{port} {refusal}") from error
                last = self._guess(error)
            else:
                self._was_reached = True
                return
        raise BrokerUnavailable(
            f"Kafka at {self.bootstrap} cannot be reached: {explain(last)};"
            " start it or name another with --broker"
        ) from last

    async def failure(self, attempt: Attempt, error: BaseException) -> BuddyError:
        """The exception for a failure, with a one-line message.

        In an outage, it connects once itself: aiokafka does not say why it cannot connect.
        """
        if is_outage(error):
            refusal = await self._refused()
            if refusal is not None:
                return BrokerUnavailable(f"cannot {attempt.words}: {refusal}")
        return translate(attempt, error, self.bootstrap)

    async def start(self, client: Any, attempt: Attempt) -> None:
        """Start a client within `START_SECONDS`; stop it if it does not start."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await client.start()
        except FAILURES as error:
            await _give_up(client, error)
            raise await self.failure(attempt, error) from error
        except BaseException as error:
            await _give_up(client, error)
            raise

    async def _refused(self) -> str | None:
        """Why a reachable broker rejects this client, or None; many callers share one login."""
        async with self._knocking:
            now = asyncio.get_running_loop().time()
            if not self._knocked or now - self._knocked > RETRY_SECONDS:
                self._refusal = await self._find_refusal()
                self._knocked = asyncio.get_running_loop().time()
            return self._refusal

    async def _find_refusal(self) -> str | None:
        for host, port in self._hosts():
            try:
                async with asyncio.timeout(DIAGNOSIS_SECONDS):
                    await self._knock(host, port)
            except FAILURES as error:
                refusal = _refusal(error)
                if refusal is not None:
                    return f"Kafka at {host}:{port} {refusal}"
            except BuddyError as error:  # a file of a certificate
                return str(error)
            else:
                return None
        return None

    def _hosts(self) -> list[tuple[str, int]]:
        try:
            found = collect_hosts(self.bootstrap, randomize=False)
        except ValueError:
            raise ConfigurationError(
                f"{self.bootstrap!r} is no Kafka address: write host:port, several with commas"
            ) from None
        return [(host, port) for host, port, _family in found]

    async def _knock(self, host: str, port: int) -> None:
        arguments = {"sasl_mechanism": None, **self._arguments()}
        connection = await create_conn(
            host,
            port,
            client_id=self.client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            **arguments,
        )
        try:
            # A broker that requires a login accepts the connection, then closes it here.
            await connection.send(MetadataRequest([]))
        finally:
            await connection.close()

    def _arguments(self) -> dict[str, Any]:
        """What every client takes. An unusable certificate is an outage once a login succeeded.

        Each new client reads the files again, and somebody may be renewing them.
        """
        try:
            return self._security.client_arguments()
        except ConfigurationError as error:
            if self._was_reached:
                raise BrokerUnavailable(str(error)) from None
            raise

    def _guess(self, error: BaseException) -> BaseException:
        """A likely cause of a broken connection, where the error names none."""
        if isinstance(error, KafkaConnectionError):
            text = "it closes the connection, so it may want TLS or a login (security_protocol)"
        elif isinstance(error, ConnectionResetError | ConnectionAbortedError):
            text = "it closes the connection, so it may not speak TLS here (security_protocol)"
        else:
            return error
        guess = ConnectionError(text)
        guess.__cause__ = error
        return guess

    def admin(self) -> Any:
        """A client for topics and groups; not started."""
        return AIOKafkaAdminClient(
            bootstrap_servers=self.bootstrap,
            client_id=self.client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            **self._arguments(),
        )

    def producer(self, **settings: Any) -> Any:
        """An idempotent producer, transactional if `transactional_id` is given; not started."""
        return AIOKafkaProducer(
            bootstrap_servers=self.bootstrap,
            client_id=self.client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            enable_idempotence=True,
            acks="all",
            compression_type=COMPRESSION,
            max_batch_size=BATCH_CEILING,
            max_request_size=BATCH_CEILING,
            **self._arguments(),
            **settings,
        )

    def consumer(self, **settings: Any) -> Any:
        """A consumer that commits nothing by itself; not started."""
        settings.setdefault("request_timeout_ms", REQUEST_MILLISECONDS)
        settings.setdefault("auto_offset_reset", "none")
        return AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            client_id=self.client_id,
            enable_auto_commit=False,
            **self._arguments(),
            **settings,
        )


class Lasting:
    """A client for requests, created on first use and created again after a failure.

    A request is retried until it succeeds, fails for good, or `CALL_SECONDS` have passed. So the
    caller does not notice a short restart of the broker.
    """

    def __init__(self, wire: Wire, make: Callable[[], Any]) -> None:
        self._wire = wire
        self._make = make
        self._client: Any = None
        self._lock = asyncio.Lock()

    async def ask(self, attempt: Attempt, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer to `question`. Raises `BrokerUnavailable`, which names the attempt."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CALL_SECONDS
        while True:
            client = None
            try:
                async with asyncio.timeout_at(deadline):
                    client = await self._started()
                    return await question(client)
            except FAILURES as error:
                await self._drop(client)
                if is_permanent(error) or loop.time() + RETRY_SECONDS >= deadline:
                    raise await self._wire.failure(attempt, error) from error
                await asyncio.sleep(RETRY_SECONDS)

    async def close(self) -> None:
        """Stop the client, if there is one."""
        await self._drop(self._client)

    async def _started(self) -> Any:
        async with self._lock:
            if self._client is None:
                client = self._make()
                try:
                    await client.start()
                except BaseException as error:
                    await _give_up(client, error)
                    raise
                self._client = client
            return self._client

    async def _drop(self, client: Any) -> None:
        # Another caller may have replaced it already.
        if client is not None and client is self._client:
            self._client = None
            await stop(client)


def _refusal(error: BaseException) -> str | None:
    return next((text for cause in causes(error) if (text := refused(cause))), None)


async def _give_up(client: Any, error: BaseException) -> None:
    """Stop a client whose start ended with this error."""
    # If a start is cancelled while it waits for metadata, nothing but its frame refers to the
    # connection: aiokafka would leave it open.
    for cause in causes(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            connection = frame.f_locals.get("bootstrap_conn")
            if connection is not None:
                connection.close()
    await stop(client)


async def stop(client: Any) -> None:
    """Stop a client of any kind and in any state, in limited time."""
    if not await _ended(client.stop() if hasattr(client, "stop") else client.close()):
        # The stop ended before it closed the connections.
        connections = client.client if hasattr(client, "client") else client._client  # noqa: SLF001
        await _ended(connections.close())


async def _ended(work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` for up to `STOP_SECONDS`; return whether it succeeded.

    `work` has a task of its own, because aiokafka cancels what it awaits.
    """
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=STOP_SECONDS)
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_SECONDS)
    task.add_done_callback(retrieve)
    return bool(done) and not task.cancelled() and task.exception() is None


async def abandon(producer: Any) -> None:
    """Stop a producer without sending the batches that it still holds.

    `stop()` alone would flush them first, so a batch given up long ago could reach the log after
    newer ones. aiokafka has no public way to drop them, hence the private names.
    """
    sender = producer._sender  # noqa: SLF001
    if sender.sender_task is not None:
        # This callback would fail batches that have failed already, and raise.
        sender.sender_task.remove_done_callback(sender._fail_all)  # noqa: SLF001
        sender.sender_task.add_done_callback(retrieve)
    accumulator = producer._message_accumulator  # noqa: SLF001
    batches = [batch for queue in accumulator._batches.values() for batch in queue]  # noqa: SLF001
    batches += accumulator._pending_batches  # noqa: SLF001
    accumulator.fail_all(KafkaError("given up"))
    for batch in batches:
        retrieve(batch.future)
        retrieve(batch._drain_waiter)  # noqa: SLF001
    accumulator._batches.clear()  # noqa: SLF001
    await stop(producer)


def retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve a future's exception, so that asyncio does not warn about it."""
    if future.done() and not future.cancelled():
        future.exception()


class Chores:
    """Background work, which `finish` waits for at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Start `work`, which must limit its own duration."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait until all work is done."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))


def topic_partition(partition: Partition) -> Any:
    """The partition as aiokafka's type, which as a dictionary key equals a `Partition`."""
    return TopicPartition(*partition)


def milliseconds_now() -> int:
    """The create time of messages sent now, in milliseconds."""
    return time.time_ns() // 1_000_000
