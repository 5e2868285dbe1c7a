"""A task taken over: the restoring of worker/engine/tasks.py as steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.simulation.dice import Dice
from tests.simulation.following import identity
from tests.simulation.group import Owned
from tests.simulation.settings import Settings
from tests.simulation.threads import Step
from tests.simulation.world import Log, World
from tests.unit.core_kit import saved
from worker.core.moments import Moment
from worker.core.task import INPUTS, Task


def take_over(
    number: int,
    world: World,
    settings: Settings,
    topics: Mapping[str, int],
    moment: Callable[[], Moment],
) -> Step[Owned]:
    """Fence whoever had the task, then restore it as the log says it stands.

    `topics` are the generations of the inputs, as the worker believes.
    """
    rules, dice = settings.rules, settings.dice
    names = rules.names
    epoch = world.fence(number)
    if world.trace:
        world.trace(f"starts task {number} with epoch {epoch}")
    yield lambda: world.settled(number) or not world.is_writer(number, epoch)
    progress = yield from _table(world.log(names.progress, number), dice)
    parked = yield from _table(world.log(names.parked, number), dice)
    granted = yield from _table(world.log(names.granted, number), dice)
    task = Task(number, rules)
    task.restore(saved(rules, number, progress, parked, granted), moment())
    missed = task.begin(
        {name: identity(topics, names.input(name)) for name in INPUTS},
        dict.fromkeys(INPUTS, 0),
    )
    if world.trace:
        parked_now = len(task.parking)
        world.trace(f"has restored task {number}: {task.reading.next}, {parked_now} parked")
    if dice.stop():
        yield None
    logs = {n: world.log(names.input(n), number) for n in INPUTS}
    return Owned(task, epoch, logs, missed)


def _table(log: Log, dice: Dice) -> Step[dict[bytes, bytes]]:
    """The latest value of each key."""
    if dice.stop():
        yield None
    end = log.end
    if log.stable < end:
        yield lambda: log.stable >= end
    table: dict[bytes, bytes] = {}
    for message in log.read(0, end)[0]:
        assert message.key is not None
        if message.value is None:
            table.pop(message.key, None)
        else:
            table[message.key] = message.value
    return table
