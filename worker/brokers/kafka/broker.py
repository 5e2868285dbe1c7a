"""The Kafka broker: the contract of `worker.brokers.contract` on aiokafka.

The parts: `wire` (clients and limits), `errors`, `metadata` and `topics` (which topics exist),
`batches` and `committer` (writing), `reader`, `fetched` and `stalls` (reading), `member` and
`groups`. Comments mark the pitfalls of aiokafka where the code avoids them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupLoadInProgressError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from worker.brokers.kafka.batches import PackedBatch, deliver, pack
from worker.brokers.kafka.committer import KafkaCommitter
from worker.brokers.kafka.errors import (
    FAILURES,
    OFFSETS_NOTE,
    Attempt,
    asking_group,
    creating,
    describing,
    describing_group,
    describing_settings,
    is_permanent,
    measuring,
    names_itself,
    some_topics,
    translate,
    writing,
)
from worker.brokers.kafka.groups import members_of
from worker.brokers.kafka.member import KafkaMember
from worker.brokers.kafka.metadata import Described, look
from worker.brokers.kafka.reader import KafkaReader
from worker.brokers.kafka.security import KafkaSecurity
from worker.brokers.kafka.topics import new_topic, topic_from
from worker.brokers.kafka.wire import (
    CALL_SECONDS,
    DIAGNOSIS_SECONDS,
    RETRY_SECONDS,
    Chores,
    Lasting,
    Wire,
    abandon,
    stop,
    topic_partition,
)
from worker.brokers.partitioner import Rotation
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    ConfigurationError,
    MessageRefused,
    MissingTopic,
)
from worker.stream import GroupMember, OffsetRange, Partition, ProducerRecord, Topic


class _Closable(Protocol):
    @property
    def closed(self) -> bool: ...

    async def close(self) -> None: ...


class KafkaBroker:
    """Implements `contract.Broker` on Apache Kafka 2.4 or newer.

    `bootstrap` is `host:port`, or several with commas. Queries (`topics`, `spans`, `committed`)
    and `create` are retried for up to `CALL_SECONDS` while the broker is away. Topic settings are
    cached, so partitions that are added to a topic may get keyed messages only after a restart.
    """

    def __init__(
        self,
        bootstrap: str,
        security: KafkaSecurity | None = None,
        *,
        client_id: str = "buddy",
        logs_damage: bool = True,
    ) -> None:
        """Without `logs_damage`, the caller reports what its readers find."""
        self._logs_damage = logs_damage
        self._wire = Wire(bootstrap, security or KafkaSecurity(), client_id)
        self._chores = Chores()
        self._admin = Lasting(self._wire, self._wire.admin)
        self._stable = Lasting(
            self._wire, lambda: self._wire.consumer(isolation_level="read_committed")
        )
        self._latest = Lasting(
            self._wire, lambda: self._wire.consumer(isolation_level="read_uncommitted")
        )
        self._known: dict[str, Topic] = {}
        self._describing = asyncio.Lock()
        self._producer: Any = None
        self._producer_lock = asyncio.Lock()
        self._rotation = Rotation()
        self._opened: list[_Closable] = []

    async def open(self) -> None:
        """See `contract.Broker.open`. A refused login or certificate is `ConfigurationError`."""
        await self._wire.probe()

    async def close(self) -> None:
        """See `contract.Broker.close`."""
        opened, self._opened = self._opened, []
        await asyncio.gather(*(thing.close() for thing in opened))
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)
        await asyncio.gather(self._admin.close(), self._stable.close(), self._latest.close())
        await self._chores.finish()

    async def create(self, topics: Iterable[Topic]) -> list[str]:
        """See `contract.Broker.create`. Topics get the broker's default replication factor.

        Returns once the topics are usable, or at once if this user may not describe them.
        """
        wanted = {topic.name: topic for topic in topics}

        async def find(admin: Any) -> Iterable[str] | None:
            try:
                return await look(admin, wanted)
            except TopicAuthorizationFailedError:
                return None

        present = await self._admin.ask(describing(wanted), find)
        missing = [topic for name, topic in wanted.items() if name not in (present or ())]
        if not missing:
            return []
        created: list[str] = []

        async def ask(admin: Any) -> None:
            response = await admin.create_topics([new_topic(topic) for topic in missing])
            forbidden = []
            for name, code, *reason in response.topic_errors:
                error = for_code(code)
                if code == 0:
                    created.append(name)
                elif error is TopicAuthorizationFailedError:
                    forbidden.append(name)
                elif error is not TopicAlreadyExistsError:
                    # An existing topic is fine: another client created it, or our first try did.
                    raise error(f"{name}: {next(iter(reason), None) or error.description}")
            if forbidden:
                raise TopicAuthorizationFailedError(*forbidden)

        await self._admin.ask(creating([topic.name for topic in missing]), ask)
        if present is not None:
            await self._await_leaders(wanted)
        return created

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """See `contract.Broker.topics`."""
        wanted = set(names)
        there = await self._look(wanted)

        async def ask(admin: Any) -> dict[str, Topic]:
            responses = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
            )
            described = {}
            forbidden = []
            for code, text, _kind, name, entries in (
                resource for response in responses for resource in response.resources
            ):
                error = for_code(code)
                if code == 0:
                    settings = {entry[0]: entry[1] for entry in entries}
                    described[name] = topic_from(name, there[name].partitions, settings)
                elif error is TopicAuthorizationFailedError:
                    forbidden.append(name)
                elif error is not UnknownTopicOrPartitionError:  # deleted just now
                    raise error(f"{name}: {text}")
            if forbidden:
                raise TopicAuthorizationFailedError(*forbidden)
            return described

        found = await self._admin.ask(describing_settings(there), ask) if there else {}
        self._known.update(found)
        return found

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        """See `contract.Broker.identities`. Empty before Kafka 2.8, which has no topic ids."""
        return {name: topic.identity for name, topic in (await self._look(set(names))).items()}

    async def damage(self) -> list[str]:
        """See `contract.Broker.damage`: what the readers of this object cannot read now."""
        readers = [thing for thing in self._opened if isinstance(thing, KafkaReader)]
        return sorted({line for reader in readers for line in reader.damaged().values()})

    def hindrance(self) -> None:
        """See `contract.Broker.hindrance`. Always None: Kafka's brokers do the upkeep."""

    async def skipped(self) -> dict[Partition, int]:
        """See `contract.Broker.skipped`; Kafka has no command that skips."""
        return {}

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        """See `contract.Broker.spans`."""
        asked = list(partitions)
        topics = await self._describe({partition.topic for partition in asked})
        for partition in asked:
            if not 0 <= partition.number < topics[partition.topic].partitions:
                raise MissingTopic(f"topic {partition.topic} has no partition {partition.number}")
        numbers = [topic_partition(partition) for partition in asked]

        async def ask(consumer: Any) -> dict[Partition, OffsetRange]:
            # Otherwise aiokafka learns of unknown topics one at a time, with a pause of 0.1 s each.
            for name in {partition.topic for partition in asked}:
                consumer._client.add_topic(name)  # noqa: SLF001 -- there is no public way
            starts, ends = await asyncio.gather(
                consumer.beginning_offsets(numbers), consumer.end_offsets(numbers)
            )
            return {Partition(*n): OffsetRange(starts[n], ends[n]) for n in numbers}

        consumers = self._latest if uncommitted else self._stable
        attempt = measuring({partition.topic for partition in asked})
        try:
            return await consumers.ask(attempt, ask)
        except BrokerUnavailable as error:
            raise await self._diagnose(attempt, error.__cause__ or error) from error

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See `contract.Broker.committed`."""
        numbers = [topic_partition(partition) for partition in partitions]

        async def ask(admin: Any) -> dict[Partition, int]:
            answers = await admin.list_consumer_group_offsets(group, partitions=numbers)
            if len(answers) < len(set(numbers)):
                # The coordinator is loading: aiokafka ignores the response's top-level error.
                raise GroupLoadInProgressError("the group's coordinator is still loading")
            return {
                Partition(*number): answer.offset
                for number, answer in answers.items()
                if answer.offset >= 0 and answer.metadata == OFFSETS_NOTE
            }

        if not numbers:
            return {}
        attempt = asking_group(group, {number.topic for number in numbers})
        try:
            return await self._admin.ask(attempt, ask)
        except BrokerUnavailable as error:
            raise await self._diagnose(attempt, error.__cause__ or error) from error

    async def publish(self, messages: Sequence[ProducerRecord]) -> list[tuple[int, int]]:
        """See `contract.Broker.publish`. Refuses oversized messages before it sends any."""
        if not messages:
            return []
        attempt = writing({message.topic for message in messages})
        producer = await self._publisher(attempt)
        batches = await self.pack(messages, producer)
        try:
            written = await deliver(batches, producer)
        except MessageRefused:
            self.forget(messages)
            self._discard(producer)
            raise
        except FAILURES as error:
            self._discard(producer)
            raise await self._diagnose(attempt, error) from error
        return [written[index] for index in range(len(messages))]

    def reader(self, *, uncommitted: bool = False) -> KafkaReader:
        """See `contract.Broker.reader`."""
        level = "read_uncommitted" if uncommitted else "read_committed"
        reader = KafkaReader(
            self._wire,
            self._chores,
            self._diagnose,
            level,
            self._known,
            logs_damage=self._logs_damage,
        )
        self._keep(reader)
        return reader

    async def join(self, group: str, topic: str) -> KafkaMember:
        """See `contract.Broker.join`. Raises `MissingTopic`, `BrokerUnavailable`."""
        await self._describe({topic})
        member = KafkaMember(self._wire, group, topic)
        await member.start()
        self._keep(member)
        return member

    async def members(self, group: str) -> list[GroupMember]:
        """See `contract.Broker.members`.

        Raises `ConfigurationError` if a program has joined with the protocol of KIP-848: Kafka then
        hides the group's members from clients like aiokafka.
        """

        async def ask(admin: Any) -> list[GroupMember] | None:
            found = await describe(admin)
            if found is not None:
                return found
            if group not in {g for g, *_ in await admin.list_consumer_groups()}:
                return []
            return await describe(admin)  # the group may have begun between the two requests

        async def describe(admin: Any) -> list[GroupMember] | None:
            answers = await admin.describe_consumer_groups([group])
            described = [group for answer in answers for group in answer.groups]
            return members_of(described, self._wire.client_id)

        members = await self._admin.ask(describing_group(group), ask)
        if members is None:
            raise ConfigurationError(
                f"a program with group.protocol=consumer has joined group {group}, so who works"
                " there cannot be told: stop that program, or give it a group of its own"
            )
        return members

    async def committer(self, name: str, group: str) -> KafkaCommitter:
        """See `contract.Broker.committer`. Raises `BrokerUnavailable`."""
        committer = await KafkaCommitter.start(
            self._wire, name, group, self, self._chores, self._diagnose
        )
        self._keep(committer)
        return committer

    def _keep(self, thing: _Closable) -> None:
        self._opened = [kept for kept in self._opened if not kept.closed] + [thing]

    async def _describe(self, names: Iterable[str]) -> Mapping[str, Topic]:
        """The named topics, from the cache where possible. Raises `MissingTopic`."""
        wanted = set(names)
        if not wanted <= self._known.keys():
            # Callers take turns: one that waits here then finds its topics in the cache. So many
            # concurrent first writes to a topic cost one request to the broker.
            async with self._describing:
                unknown = wanted - self._known.keys()
                found = await self.topics(unknown) if unknown else {}
            for name in sorted(unknown - found.keys()):
                raise MissingTopic(_missing(name))
        return self._known

    async def pack(
        self, messages: Sequence[ProducerRecord], producer: Any
    ) -> dict[Partition, list[PackedBatch]]:
        """Pack messages for this producer; reload the topics before a message is refused."""
        names = {message.topic for message in messages}
        topics = await self._describe(names)
        try:
            return pack(messages, topics, self._rotation, producer)
        except (MessageRefused, MissingTopic):
            await self.topics(names)
            topics = await self._describe(names)
            return pack(messages, topics, self._rotation, producer)

    def forget(self, messages: Sequence[ProducerRecord]) -> None:
        """Drop the topics of these messages from the cache; the next batch reloads them."""
        for topic in {message.topic for message in messages}:
            self._known.pop(topic, None)

    async def _publisher(self, attempt: Attempt) -> Any:
        async with self._producer_lock:
            if self._producer is None:
                producer = self._wire.producer()
                await self._wire.start(producer, attempt)
                self._producer = producer
            return self._producer

    def _discard(self, producer: Any) -> None:
        # After a failed batch, its sequence numbers have a gap, which the broker would refuse.
        if self._producer is producer:
            self._producer = None
            self._chores.add(abandon(producer))

    async def _look(self, names: Collection[str], *, rights: bool = False) -> dict[str, Described]:
        """Describe the named topics that exist. Raises `BrokerUnavailable`."""
        if not names:
            return {}
        found = await self._admin.ask(
            describing(names), lambda admin: look(admin, names, rights=rights)
        )
        for name in set(names) - found.keys():
            self._known.pop(name, None)
        return found

    async def _diagnose(self, attempt: Attempt, error: BaseException) -> BuddyError:
        """The exception for a failure; asks the broker where aiokafka's error says too little.

        aiokafka does not always name the topic that it may not use, and it retries for ever if a
        topic is deleted.
        """
        failure = await self._wire.failure(attempt, error)
        names = {*attempt.topics, *attempt.read}
        if names_itself(attempt, error) or not names:
            return failure
        try:
            async with asyncio.timeout(DIAGNOSIS_SECONDS):
                there = await self._look(names, rights=True)
        except TimeoutError:
            return failure
        except BrokerUnavailable as better:
            return better if is_permanent(better.__cause__ or better) else failure
        missing = sorted(names - there.keys())
        if missing:
            return MissingTopic(_missing(missing[0]))
        refused = [name for name in attempt.topics if not there[name].allows(attempt.topic_right)]
        refused = refused or [name for name in attempt.read if not there[name].allows("READ")]
        if refused:
            return translate(attempt, TopicAuthorizationFailedError(*refused), "")
        return failure

    async def _await_leaders(self, topics: Collection[str]) -> None:
        """Wait until every partition has a leader: a producer would wait with long pauses."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CALL_SECONDS
        while waiting := await self._leaderless(topics):
            if loop.time() > deadline:
                raise BrokerUnavailable(
                    f"Kafka has no leader for {some_topics(waiting)} yet: see the broker's log"
                )
            await asyncio.sleep(RETRY_SECONDS)

    async def _leaderless(self, topics: Collection[str]) -> set[str]:
        found = await self._look(topics)
        return {name for name in topics if name not in found or not found[name].led}


def _missing(topic: str) -> str:
    return f"topic {topic} does not exist: `buddy topics create` makes it"
