"""The ground under the Kafka broker: aiokafka's clients made, bounded and discarded.

aiokafka has no types (hence `Any`) and leaves two things to its users that stand here: it does not
say why it cannot connect, and what it was doing when given up goes on unless told to stop.
"""

from __future__ import annotations

import asyncio
import time
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
"""What a failure means; asks the broker where the failure itself does not say."""

CALL_SECONDS = 10.0
"""The longest that one call may take."""

START_SECONDS = 20.0
"""The longest that a client may take to start; a writer may have to abort another's transaction."""

STOP_SECONDS = 5.0
"""The longest that a client may take to stop: after an outage `stop()` would hang."""

DIAGNOSIS_SECONDS = 2.0
"""How long to find out why something failed: whoever is told has waited long enough already."""

REQUEST_MILLISECONDS = 5_000
RETRY_SECONDS = 0.2

COMPRESSION: str | None = None
"""What producers compress batches with: nothing, until a measurement says otherwise."""

BATCH_CEILING = 64 * 1024 * 1024
"""Above any batch that is built here: batches are cut to their topic's limit, not by aiokafka."""


class Wire:
    """Makes the clients of one broker: the address, the security and the common settings."""

    def __init__(self, bootstrap: str, security: KafkaSecurity, client_id: str) -> None:
        self.bootstrap = bootstrap
        self._security = security
        self._client_id = client_id
        self._knocking = asyncio.Lock()
        self._knocked = 0.0
        self._refusal: str | None = None

    async def probe(self) -> None:
        """Connect and log in once, to learn what aiokafka does not tell: why it fails.

        Raises `BrokerUnavailable` or, when the broker refuses the login or its certificate is not
        accepted, `ConfigurationError`.
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
                return
        raise BrokerUnavailable(
            f"Kafka at {self.bootstrap} cannot be reached: {explain(last)};"
            " start it or name another with --broker"
        ) from last

    async def failure(self, attempt: Attempt, error: BaseException) -> BuddyError:
        """What a failure means, in one line. Why there is no connection, aiokafka does not say."""
        if is_outage(error):
            refusal = await self._refused()
            if refusal is not None:
                return BrokerUnavailable(f"cannot {attempt.words}: {refusal}")
        return translate(attempt, error, self.bootstrap)

    async def start(self, client: Any, attempt: Attempt) -> None:
        """Start a client within bounds; one that does not start is stopped again."""
        try:
            async with asyncio.timeout(START_SECONDS):
                await client.start()
        except FAILURES as error:
            await stop(client)
            raise await self.failure(attempt, error) from error
        except BaseException:
            await stop(client)
            raise

    async def _refused(self) -> str | None:
        """Whether the broker is there but lets nobody in, and why; many who ask are one login."""
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
        arguments = {"sasl_mechanism": None, **self._security.client_arguments()}
        connection = await create_conn(
            host,
            port,
            client_id=self._client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            **arguments,
        )
        try:
            # A broker that wants a login takes the connection, then closes it here.
            await connection.send(MetadataRequest([]))
        finally:
            await connection.close()

    def _guess(self, error: BaseException) -> BaseException:
        """What a broken connection may mean, where nothing says so."""
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
            client_id=self._client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            **self._security.client_arguments(),
        )

    def producer(self, **settings: Any) -> Any:
        """An idempotent producer; with `transactional_id` a transactional one; not started."""
        return AIOKafkaProducer(
            bootstrap_servers=self.bootstrap,
            client_id=self._client_id,
            request_timeout_ms=REQUEST_MILLISECONDS,
            enable_idempotence=True,
            acks="all",
            compression_type=COMPRESSION,
            max_batch_size=BATCH_CEILING,
            max_request_size=BATCH_CEILING,
            **self._security.client_arguments(),
            **settings,
        )

    def consumer(self, **settings: Any) -> Any:
        """A consumer that commits nothing by itself; not started."""
        settings.setdefault("request_timeout_ms", REQUEST_MILLISECONDS)
        settings.setdefault("auto_offset_reset", "none")
        return AIOKafkaConsumer(
            bootstrap_servers=self.bootstrap,
            client_id=self._client_id,
            enable_auto_commit=False,
            **self._security.client_arguments(),
            **settings,
        )


class Lasting:
    """A client for questions: made when first needed, and made anew after a failure.

    A question is asked again until it is answered or `CALL_SECONDS` have passed, so a broker that
    restarts in the meantime is not noticed by the caller.
    """

    def __init__(self, wire: Wire, make: Callable[[], Any]) -> None:
        self._wire = wire
        self._make = make
        self._client: Any = None
        self._lock = asyncio.Lock()

    async def ask(self, attempt: Attempt, question: Callable[[Any], Awaitable[T]]) -> T:
        """The answer. Raises `BrokerUnavailable` naming the attempt."""
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
                except BaseException:
                    await stop(client)
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


async def stop(client: Any) -> None:
    """Stop a client of any kind, whatever state it is in, within bounds."""
    if not await _ended(client.stop() if hasattr(client, "stop") else client.close()):
        # Cut short before it came to the connections.
        connections = client.client if hasattr(client, "client") else client._client  # noqa: SLF001
        await _ended(connections.close())


async def _ended(work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` ended well in time. A task of its own: aiokafka cancels what it awaits."""
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=STOP_SECONDS)
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=STOP_SECONDS)
    task.add_done_callback(retrieve)
    return bool(done) and not task.cancelled() and task.exception() is None


async def abandon(producer: Any) -> None:
    """Stop a producer without sending what it still holds.

    `stop()` alone would flush first: a batch given up long ago could then reach the log after
    newer ones. There is no public way, hence the private names.
    """
    sender = producer._sender  # noqa: SLF001
    if sender.sender_task is not None:
        # It would fail what has failed already, and trip over it.
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
    """Look at a future's exception, so that asyncio does not complain that nobody did."""
    if future.done() and not future.cancelled():
        future.exception()


class Chores:
    """Work that goes on behind a caller's back, and is waited for at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Start `work`, which must be bounded by itself."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait until all of it is done."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))


def topic_partition(partition: Partition) -> Any:
    """The kind of partition that aiokafka insists upon; as a key it equals ours."""
    return TopicPartition(*partition)


def milliseconds_now() -> int:
    """The time that producers put on their messages."""
    return time.time_ns() // 1_000_000
