"""The rounds: an export is asked for, its sink killed, and the next one must finish it."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tests.acceptance.kit import Buddy, Service
from tests.bench import mix
from tests.bench.running import opened
from tests.exports.reading import file_faults
from tests.proofs.kill_exports.stages import TARGETS, Place, Stage, step
from worker.brokers.contract import Broker, Reader
from worker.exports.verify import verify
from worker.sink.requests import (
    ExportRequest,
    decode_announcement,
    encode_request,
    export_id_of,
)
from worker.stream import Partition, ProducerRecord

AGAIN = 0.25
"""Of the rounds kill the next life as well, while it finishes what the first began."""

_BATCH = 2_000
_PATIENCE = 120.0


class Options(NamedTuple):
    """Of a run; no round begins after `seconds`."""

    rounds: int = 100
    seed: int = 1
    seconds: float = 1e9
    rows: int = 5_000


class Found:
    """What a run found: kills by stage, lives, looks at the directory, and all that was wrong."""

    def __init__(self) -> None:
        self.kills: Counter[Stage] = Counter()
        self.rounds = self.lives = self.looks = self.leftovers = self.announced = 0
        self.faults: list[str] = []

    def lines(self) -> list[str]:
        """For people."""
        kills = ", ".join(f"{stage.name.lower()} {self.kills[stage]}" for stage in Stage)
        looks = f"{self.looks:,} looks at the exports directory"
        left = f"{self.leftovers} leftovers at the next start"
        return [
            f"{self.kills.total()} kills: {kills}",
            f"{self.rounds} rounds, {self.lives} lives of the sink; {looks}; {left}",
            f"{self.announced} announcements of {self.rounds} finished exports",
            *(f"FAULT {fault}" for fault in self.faults),
            "clean" if not self.faults else f"{len(self.faults)} faults",
        ]


async def run(options: Options, say: Callable[[str], None]) -> Found:
    """Everything, in a directory of its own that is gone afterwards unless something was wrong."""
    folder = Path(tempfile.mkdtemp(prefix="buddy-kill-exports-"))
    buddy = Buddy(folder)
    found = Found()
    try:
        await asyncio.to_thread(buddy.create_topics, 1)
        async with opened(buddy.broker) as broker:
            await _fill(broker, buddy, options.rows)
            await _Rounds(broker, buddy, options, found, say).run()
    finally:
        buddy.stop_all()
        if found.faults:
            say(f"everything is left in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return found


async def _fill(broker: Broker, buddy: Buddy, rows: int) -> None:
    accepted = buddy.names.accepted
    messages = (ProducerRecord(accepted(entity), key, row) for entity, key, row in mix.many(rows))
    while batch := list(islice(messages, _BATCH)):
        await broker.publish(batch)


class _Rounds:
    def __init__(
        self,
        broker: Broker,
        buddy: Buddy,
        options: Options,
        found: Found,
        say: Callable[[str], None],
    ) -> None:
        self._broker = broker
        self._buddy = buddy
        self._options = options
        self._found = found
        self._say = say
        self._chance = random.Random(options.seed)
        self._place = Place(buddy.directory / "exports", buddy.directory / "data" / "sink")
        self._looks: Counter[Stage] = Counter()
        self._sound: set[str] = set()
        self._deck: list[Stage] = []
        self._reader: Reader = broker.reader()
        self._reader.assign({Partition(buddy.names.exports, 0): 0})

    async def run(self) -> None:
        """Two exports that nobody hurts, to learn how long each stage is; then the rounds.

        Two, since the first one's cut waits until all rows have been read.
        """
        began = time.monotonic()
        service = self._start()
        for request in ("unhurt-1", "unhurt-2"):
            self._looks.clear()
            await self._ask(request)
            self._until(request, service, Stage.ANNOUNCED, learn=True)
            service.send(signal.SIGCONT)
            await self._settle(request)
        self._found.announced = 0
        for number in range(self._options.rounds):
            if time.monotonic() - began > self._options.seconds:
                break
            service = await self._round(f"round-{number}", service)
            if (number + 1) % 10 == 0:
                self._say(f"{number + 1} rounds, {time.monotonic() - began:.0f} s")
        service.stop().succeeded()
        await self._reader.close()

    async def _round(self, request: str, service: Service) -> Service:
        await self._ask(request)
        service = self._kill(request, service)
        if self._chance.random() < AGAIN:
            service = self._kill(request, service)
        self._until(request, service, Stage.RENAMED)  # somebody looks on while it is finished
        service.send(signal.SIGCONT)
        await self._settle(request)
        self._found.rounds += 1
        return service

    def _kill(self, request: str, service: Service) -> Service:
        """Kill it in the stage that is next in the deck, and start another."""
        if not self._deck:
            self._deck = self._chance.sample(TARGETS, len(TARGETS))
        target = self._deck.pop()
        stage = self._until(request, service, target)
        service.kill()
        self._found.kills[stage] += 1
        self._look(request)
        left = self._place.leftovers()
        self._found.leftovers += len(left)
        service = self._start()
        still = [path.name for path in left if path in self._place.leftovers()]
        if still:
            self._found.faults.append(f"{request}, killed at {stage.name}: left over {still}")
        return service

    def _start(self) -> Service:
        self._found.lives += 1
        return self._buddy.start("sink").ready()

    def _until(
        self, request: str, service: Service, target: Stage, *, learn: bool = False
    ) -> Stage:
        """Step it into the target stage, and a random share of the way through that stage."""
        export_id = export_id_of(request)
        more = int(self._looks[target] * self._chance.uniform(0, 0.7))
        stage = Stage.WAITING

        def look() -> bool:
            nonlocal more, stage
            self._look(request)
            stage = self._place.stage(service, request, export_id)
            if learn:
                self._looks[stage] += 1
            more -= stage == target
            return stage > target or (stage == target and more < 0)

        step(service, look)
        return stage

    def _look(self, request: str) -> None:
        """Whatever is visible is finished: seen for the first time, every byte of it is checked."""
        self._found.looks += 1
        for path in self._place.visible():
            if path.name not in self._sound:
                faults = list(file_faults(path))
                self._found.faults += [f"{request}: visible and not finished: {f}" for f in faults]
                self._sound.add(path.name)

    async def _ask(self, request: str) -> None:
        key, value = encode_request(ExportRequest(request))
        await self._broker.publish([ProducerRecord(self._buddy.names.export_requests, key, value)])

    async def _settle(self, request: str) -> None:
        """The export is announced, is there exactly once, and is what it ought to be."""
        directory = await self._announced(request)
        there = self._place.visible()
        if [path.name for path in there] != [directory]:
            self._found.faults.append(f"{request}: {[path.name for path in there]} are there")
        for path in there:
            checked = await asyncio.to_thread(verify, path)
            problems = [*checked.problems, *file_faults(path)]
            rows = sum(checked.manifest.record_counts.values())
            if rows != self._options.rows or not checked.manifest.complete:
                problems.append(f"{rows} rows")
            self._found.faults += [f"{request}: {problem}" for problem in problems]
            shutil.rmtree(path)

    async def _announced(self, request: str) -> str:
        """The directory that all announcements name for this request, once there can be no more.

        Requests are answered in their order: when one that cannot be read has been refused, all
        before it are done, and no later life of the sink takes them up again.
        """
        marker = f"after-{request}"
        await self._broker.publish(
            [ProducerRecord(self._buddy.names.export_requests, marker.encode(), b"?")]
        )
        directories: set[str] = set()
        async with asyncio.timeout(_PATIENCE):
            while True:
                for message in await self._reader.read(1, 1.0):
                    said = decode_announcement(message.value)
                    assert said is not None
                    if said.request_id == marker:
                        return self._only(request, directories)
                    if said.status == "failed":
                        self._found.faults.append(f"{said.request_id}: failed: {said.error}")
                    if said.status == "finished":
                        self._found.announced += 1
                        directories.add(str(said.directory))

    def _only(self, request: str, directories: set[str]) -> str:
        if len(directories) != 1:
            self._found.faults.append(f"{request}: announced as {sorted(directories)}")
        return directories.pop() if directories else ""
