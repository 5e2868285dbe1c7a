"""What a seed makes of the broker and of the ways to it: delays, losses, outages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from tests.proofs.simulation.broker.cluster import Weather
from tests.proofs.simulation.broker.network import Fate, Network
from tests.proofs.simulation.loop import Killed, Process, VirtualLoop
from tests.proofs.simulation.settings import Settings
from worker.errors import BrokerUnavailable, Fenced
from worker.stream import Partition, ProducerRecord

_T = TypeVar("_T")
_LATE = 3.0
"""Seconds after which the last delayed request to commit arrives."""


class Conditions:
    """How things are now: `fine` or not, for all alike."""

    def __init__(self, settings: Settings, loop: VirtualLoop) -> None:
        self.settings = settings
        self.dice = settings.dice
        self.loop = loop
        self.fine = True
        self.healed = False
        """Whether nothing bad happens any more: then idle readers need not look so often."""

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have something happen in the world, whoever is dead by then."""
        self.loop.world.later(seconds, act)

    def latency(self) -> float:
        """Of one hop, in seconds. Most are of no account."""
        chance = self.dice.random()
        slow = self.settings.slow
        return chance / slow * 0.5 if chance < slow else (chance - slow) * 0.01


class SeededWeather(Weather):
    """The broker marks late, gives transactions up, and refuses some rows."""

    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self.refused: Callable[[str, bytes | None], bool] = lambda _topic, _value: False

    def mark(self, act: Callable[[], None]) -> None:
        conditions = self._conditions
        if conditions.fine or conditions.dice.random() < 0.4:
            act()
        else:
            conditions.later(conditions.latency(), act)

    def limit(self, act: Callable[[], None]) -> None:
        self._conditions.later(self._conditions.settings.limit, act)

    def refuses(self, message: ProducerRecord) -> bool:
        return self.refused(message.topic, message.value)


class SeededNetwork(Network):
    """The way of one process to the cluster."""

    def __init__(self, conditions: Conditions, process: Process) -> None:
        self.cut_until = 0.0
        """Until when the cluster cannot be reached."""
        self._conditions = conditions
        self._dice = conditions.dice
        self._settings = conditions.settings
        self._process = process

    async def hop(self) -> None:
        self.check()
        if not self._conditions.fine and self._dice.random() < self._settings.fineness:
            await asyncio.sleep(self._conditions.latency())
            self.check()

    def check(self) -> None:
        if self._process.dead:
            raise Killed
        if self._conditions.loop.time() < self.cut_until:
            raise BrokerUnavailable("cut off")

    def order(self, places: Sequence[_T]) -> Sequence[_T]:
        if self._conditions.fine or len(places) < 2:
            return places
        shuffled = list(places)
        self._dice.shuffle(shuffled)
        return shuffled

    def some(self, places: Sequence[Partition]) -> Sequence[Partition]:
        if self._conditions.fine:
            return places
        lag = self._settings.lag
        if lag:
            places = [p for p in places if ".accepted." not in p.topic or self._dice.random() > lag]
        return self.order(places)[: 1 + self._dice.below(len(places))] if places else places

    def portion(self, limit: int) -> int:
        return limit if self._conditions.fine else min(limit, 1 + self._dice.below(8))

    def patience(self, timeout: float) -> float:
        if self._conditions.healed:
            return max(timeout, 1.0)
        return timeout * self._settings.poll

    def fate(self) -> Fate:
        if self._conditions.fine or self._dice.random() >= self._settings.losses:
            return "done"
        return self._dice.choice(("never", "unheard", "late"))

    def later(self, act: Callable[[], None]) -> None:
        def arrive() -> None:
            with suppress(Fenced):
                act()

        self._conditions.later(self._dice.random() * _LATE, arrive)

    def leave(self, act: Callable[[], None]) -> None:
        if self._process.dead:
            raise Killed
        self._conditions.later(max(0.0, self.cut_until - self._conditions.loop.time()), act)

    def hears(self) -> bool:
        self.check()
        return self._conditions.fine or self._dice.random() < 0.7
