"""Which topics a worker works on, and when that cannot be said."""

from __future__ import annotations

import pytest

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.connection import MemoryBroker
from worker.core.topics import Names, wanted
from worker.engine.identities import Identities
from worker.errors import MissingTopic, TopicRecreated
from worker.stream import Topic

NAMES = Names("b")


def topics() -> list[Topic]:
    return list(wanted(NAMES, 2, 1024).values())


async def test_an_input_that_is_gone_for_a_moment_is_no_topic_without_an_identity() -> None:
    """Found by the simulation: it was created anew while a worker started (seed 1488)."""
    broker = MemoryBroker(Cluster(lambda: 0))
    identities = Identities(broker, NAMES, lambda: 0)
    made = topics()
    await broker.create(topic for topic in made if topic.name != NAMES.input("users"))
    with pytest.raises(MissingTopic, match=r"topic b\.in\.users is missing"):
        await identities.capture()
    await broker.create(made)
    await identities.capture()
    assert all(identities.of_inputs().values())
    broker.cluster.delete(NAMES.input("users"))
    await broker.create(made)
    with pytest.raises(TopicRecreated):
        await identities.check()


async def test_a_broker_without_identities_is_taken_as_it_is() -> None:
    identities = Identities(MemoryBroker(Cluster(lambda: 0)), NAMES, lambda: 0)
    await identities.capture()
    assert set(identities.of_inputs().values()) == {""}
