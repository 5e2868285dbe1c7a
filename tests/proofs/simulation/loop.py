"""An event loop with virtual time for several processes, whose turns a seed decides.

Time stands still while anybody can go on, and then jumps to the next timer. The handles of one
process run in their order, as on a loop of its own; which process runs next is drawn. A handle
belongs to the process whose context it was made in.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Handle, Task, TimerHandle, events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar, TypeVarTuple

from tests.proofs.simulation.dice import Dice

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_MOST_STEPS = 200_000
_MOST_TASKS = 200


class Killed(BaseException):
    """The process that this runs in is dead."""


class Stuck(Exception):
    """Nobody can go on any more, or somebody goes on for ever."""


class Process:
    """What runs on the loop under one name, and dies or freezes as one."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.loop = loop
        self.ready: deque[Handle] = deque()
        self.dead = False
        self.frozen = False
        self.awake = False
        """Whether the loop has it among those that can go on."""
        self.tasks: list[Task[Any]] = []
        self._context = copy_context()
        self._context.run(_process.set, self)

    def spawn(self, coro: Coroutine[Any, Any, _T]) -> Task[_T]:
        """Have it run this."""
        return self.loop.create_task(coro, context=self._context.copy())

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Have it do this in so many seconds."""
        self.loop.call_later(seconds, act, context=self._context)

    def freeze(self) -> None:
        """Nothing of it goes on, timers included, until it is thawed."""
        self.frozen = True
        self.loop.note(self)

    def thaw(self) -> None:
        """All that has become due meanwhile is due now."""
        self.frozen = False
        self.loop.note(self)

    def kill(self) -> None:
        """End it between two of its steps.

        Its coroutines are unwound, since Python would do so at any later moment. What they do
        on the way must have no effect: `dead` tells them so.
        """
        self.dead = True
        self.ready.clear()
        self.loop.note(self)
        while self.tasks:
            task = self.tasks.pop()
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                _unwind(task.get_coro())


_process: ContextVar[Process] = ContextVar("process")


def running() -> str:
    """The name of the process that this is asked in."""
    process = _process.get(None)
    return "nobody" if process is None else process.name


def _unwind(coro: Any) -> None:
    for _ in range(100):
        try:
            coro.throw(Killed())
        except BaseException:  # noqa: BLE001 -- whatever a dead process still has to say
            return


class VirtualLoop(AbstractEventLoop):
    """The loop. `world` is the process of all that never dies."""

    def __init__(self, dice: Dice) -> None:
        self.steps = 0
        self.error: BaseException | None = None
        """What a callback has raised; it ends the run."""
        self.on_step: Callable[[], None] = lambda: None
        """Called between two steps, as often as `every` says."""
        self.every = 1
        self.haste = 0.0
        """How often time goes on although somebody could."""
        self._dice = dice
        self._now = 0.0
        self._timers: list[tuple[float, int, TimerHandle, Process]] = []
        self._made = 0
        self._awake: list[Process] = []
        self.world = Process("world", self)

    # --- running ------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], seconds: float) -> bool:
        """Go on until that is so. False if so much time has passed before.

        It is asked whenever time has to pass. Raises what a callback raised, and Stuck.
        """
        end = self._now + seconds
        chance, awake = self._dice.random, self._awake
        limit = self.steps + _MOST_STEPS
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while True:
                if not awake:
                    if until():
                        return True
                    if self._now > end:
                        return False
                    self._jump()
                    continue
                process = awake[int(chance() * len(awake))]
                handle = process.ready.popleft()
                if not handle._cancelled:
                    handle._run()
                if self.error is not None:
                    raise self.error
                if not process.ready:
                    self.note(process)
                self.steps += 1
                if not self.steps % self.every:
                    self.on_step()
                    if self.haste and chance() < self.haste:
                        self.pass_time(chance() * 0.1)
                if self.steps > limit:
                    raise Stuck("it goes round and round")
        finally:
            events._set_running_loop(before)

    def pass_time(self, seconds: float) -> None:
        """Time goes on, whoever could go on meanwhile."""
        self._now += seconds
        self._move_timers()

    def note(self, process: Process) -> None:
        """Find out anew whether a process can go on."""
        runs = bool(process.ready) and not process.frozen and not process.dead
        if runs != process.awake:
            process.awake = runs
            if runs:
                self._awake.append(process)
            else:
                self._awake.remove(process)

    def _jump(self) -> None:
        if not self._timers:
            raise Stuck("nobody waits for anything")
        self._now = max(self._now, self._timers[0][0])
        self._move_timers()

    def _move_timers(self) -> None:
        timers, now = self._timers, self._now
        while timers and timers[0][0] <= now:
            _, _, handle, process = heappop(timers)
            if not handle._cancelled and not process.dead:
                self._add(handle, process)

    def _add(self, handle: Handle, process: Process) -> None:
        process.ready.append(handle)
        if not process.awake:
            self.note(process)

    # --- what asyncio asks of a loop ----------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> Handle:
        context = copy_context() if context is None else context
        handle = Handle(callback, args, self, context)
        process = context.get(_process, self.world)
        if not process.dead:
            process.ready.append(handle)
            if not process.awake:
                self.note(process)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        context = copy_context() if context is None else context
        handle = TimerHandle(when, callback, args, self, context)
        process = context.get(_process, self.world)
        if not process.dead:
            self._made += 1
            heappush(self._timers, (when, self._made, handle, process))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> Future[Any]:
        return Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> Task[Any]:
        context = copy_context() if context is None else context
        process = context.get(_process, self.world)
        if process.dead:
            coro.close()
            raise Killed
        task: Task[Any] = Task(coro, loop=self, name=name, context=context)
        if len(process.tasks) > _MOST_TASKS:
            process.tasks = [other for other in process.tasks if not other.done()]
        process.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts) -> Future[_T]:
        """Inline, after a moment."""
        future: Future[_T] = self.create_future()

        def run() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 -- for whoever waits for it
                future.set_exception(error)

        chance = self._dice.random()
        if chance < 0.5:
            self.call_soon(run)
        else:
            self.call_later((chance - 0.5) * 0.02, run)
        return future

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "handle" in context:
            self.error = context["exception"]

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        pass
