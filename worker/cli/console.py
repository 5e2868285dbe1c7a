"""What the commands share: settings, a broker, tables and JSON on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import click
import msgspec

from worker.brokers.connect import connect
from worker.brokers.contract import Broker
from worker.settings import Settings, load, unknown_variables
from worker.topics import Names

if TYPE_CHECKING:
    from rich.progress import Progress


class Context:
    """What the options before the command say. Settings are read when first needed."""

    def __init__(
        self, config: str | None, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self._config = config
        self._options = options
        self.environment = environment

    @cached_property
    def settings(self) -> Settings:
        """The settings in force. Variables that are none are named on standard error.

        Raises ConfigurationError.
        """
        if unknown := unknown_variables(self.environment):
            names = (f"{n} (did you mean {near}?)" if near else n for n, near in unknown.items())
            click.echo(f"buddy: no such setting, ignored: {', '.join(names)}", err=True)
        return load(self._config, self.environment, self._options)

    @property
    def names(self) -> Names:
        """The names of the topics."""
        return Names(self.settings.prefix)

    @asynccontextmanager
    async def broker(self, *, looks: bool = False) -> AsyncIterator[Broker]:
        """The broker, open; one that only `looks` makes no log where there is none.

        Raises BrokerUnavailable and ConfigurationError.
        """
        from worker import log

        log.silence_libraries()
        broker = connect(self.settings, self.environment, looks=looks)
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()


class Seconds(click.FloatRange):
    """A positive number of seconds for an option."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=365 * 24 * 3600.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; NaN, which is in every range, is none."""
        seconds = super().convert(value, param, ctx)
        if seconds != seconds:  # noqa: PLR0124 -- what NaN is known by
            self.fail("expected a number of seconds", param, ctx)
        return seconds


def now_ms() -> int:
    """The clock of the program, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def print_json(value: Any) -> None:
    """One JSON document on standard output, for programs."""
    click.echo(msgspec.json.encode(value).decode())


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], footer: str = ""
) -> None:
    """A table on standard output; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=footer or None)
    shown = [list(row) for row in rows]
    for place, column in enumerate(columns):
        numbers = bool(shown) and all(isinstance(row[place], int | float) for row in shown)
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in shown:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    # Without a terminal rich assumes 80 columns and would break cells.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def notices(kept: list[str] | None = None) -> Callable[[str], None]:
    """What takes the notices of a file's readers: each line once, on standard error.

    The lines are `kept` as well, if a list is given.
    """
    told: set[str] = set()

    def notice(line: str) -> None:
        if line not in told:
            told.add(line)
            shown = " ".join(line.split())
            click.echo(f"buddy: {shown}", err=True)
            if kept is not None:
                kept.append(shown)

    return notice


def progress_bar(*, quiet: bool = False) -> Progress:
    """A progress bar on standard error, shown on a terminal only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=False,
    )
