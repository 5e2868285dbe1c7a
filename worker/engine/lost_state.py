"""Makes a running task write its state again where a topic of that state has lost messages."""

from __future__ import annotations

from worker.core.incidents import INTERNAL_RECREATED, INTERNAL_SKIPPED, INTERNAL_TRUNCATED
from worker.core.topics import Names
from worker.engine.identities import Identities
from worker.engine.losses import Losses
from worker.engine.task_handle import TaskHandle
from worker.engine.task_restorer import of_state
from worker.stream import Partition


async def check_state(
    handle: TaskHandle, identities: Identities, names: Names, losses: Losses
) -> None:
    """Compare the task's state with its topics; report and rewrite what they have lost.

    A topic may have been re-created or truncated, or records may have been removed or skipped as
    damaged. Raises TopicRecreated and BrokerUnavailable.
    """
    task = handle.task
    handle.truncated |= {p for p in identities.truncated if p in handle.written}
    if handle.truncated:
        await identities.check()  # a re-created topic begins at offset 0, too
    anew = identities.anew(handle.state_topics)
    lost = identities.newly_lost(handle.lost_offsets)
    if not anew and not lost and not handle.truncated:
        return
    handle.state_topics |= anew
    handle.lost_offsets |= lost
    task.write_again(of_state(handle.state_topics, names))
    for topic in anew:
        partition = Partition(topic, task.number)
        handle.lost_offsets[partition] = 0
        identities.forget(partition)
        handle.truncated.discard(partition)
        handle.written.pop(partition, None)
        task.books.incident(INTERNAL_RECREATED)
        losses.state_recreated(partition)
    for partition in handle.truncated:
        del handle.written[partition]
        identities.truncated.discard(partition)
        task.books.incident(INTERNAL_TRUNCATED)
        losses.state_truncated(partition)
    handle.truncated.clear()
    for partition, gone in lost.items():
        topic_id = f"{partition.topic} {handle.state_topics.get(partition.topic, '')}"
        if fresh := task.books.note_faults(INTERNAL_SKIPPED, topic_id, gone):
            losses.state_lost(partition, fresh)
