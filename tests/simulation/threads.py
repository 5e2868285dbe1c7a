"""What goes on by itself, a step at a time: a coroutine of the real shell as a generator.

It yields where the real one awaits: None to be resumed at any time, or a function that says when.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

_T = TypeVar("_T")
Step = Generator[Callable[[], bool] | None, None, _T]


class Outage(Exception):
    """The broker cannot be reached, or keeps one waiting too long."""


class Thread:
    """Something of a worker that goes on by itself, a step at a time."""

    __slots__ = ("_next", "_run", "begun", "done", "name", "value", "waits")

    def __init__(self, name: str, run: Step[Any]) -> None:
        self.name = name
        self.begun = False
        self.done = False
        self.value: Any = None
        self.waits: Any = None
        self._run: Generator[Any, None, Any] = run
        self._next = run.__next__

    @property
    def can_fail(self) -> bool:
        """Whether an outage ends it in an orderly way."""
        return self.name.startswith(("rounds", "work"))

    def ready(self) -> bool:
        """Whether it can go on."""
        return not self.done and (self.waits is None or self.waits())

    def step(self, error: Exception | None = None) -> None:
        """Go on to where it stops next."""
        self.begun = True
        try:
            self.waits = self._next() if error is None else self._run.throw(error)
        except StopIteration as end:
            self.done = True
            self.value = end.value
