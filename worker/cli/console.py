"""What the commands share: settings, a broker, tables and JSON on standard output.

Text from outside (names of files, fields and columns, a broker's messages) is printed only through
the `say` functions, `complain`, `confirm` and `print_table`. They let no control character through
to a terminal. Each call names its stream to click, since click's default stream would write UTF-8
to an ASCII terminal.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cached_property
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

import click

from worker.core.shown import shown
from worker.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from worker.brokers.contract import Broker
    from worker.cli.settings import Settings
    from worker.core.topics import Names

_NARROWEST: Final = 60
"""Minimum width of a table in columns, even on a narrower terminal: a code takes 22."""
_WITHOUT_TERMINAL: Final = 160
_LONG_WORD: Final = 22
_ENDLESS: Final = re.compile(r"\S{300,}")
_STYLES: Final = {"error": "red", "warning": "yellow"}


class Context:
    """The options before the command. Settings are read on first use."""

    def __init__(
        self, config: str | None, options: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        self._config = config
        self._options = options
        self.environment = environment

    @cached_property
    def settings(self) -> Settings:
        """The settings in force. Names `BUDDY_…` variables that are no setting on standard error.

        From here on, warnings and errors are logged there too. Raises ConfigurationError.
        """
        from worker import log
        from worker.cli.settings import load, unknown_variables

        log.to_stderr("warning")
        if unknown := unknown_variables(self.environment):
            names = (f"{n} (did you mean {near}?)" if near else n for n, near in unknown.items())
            complain(f"no such setting, ignored: {', '.join(names)}")
        return load(self._config, self.environment, self._options)

    def arguments(self) -> list[str]:
        """The options before the command, for another process of this program."""
        options = {"config": self._config, **self._options}
        given = [(name, value) for name, value in options.items() if value is not None]
        return [part for name, value in given for part in (f"--{name.replace('_', '-')}", value)]

    @property
    def names(self) -> Names:
        """The names of the topics."""
        from worker.core.topics import Names

        return Names(self.settings.prefix)

    @asynccontextmanager
    async def broker(
        self, *, read_only: bool = False, logs_damage: bool = True
    ) -> AsyncIterator[Broker]:
        """An open broker, closed at the end. With `read_only`, it creates no log if there is none.

        Without `logs_damage`, the command itself reports damage that it finds on Kafka.
        Raises BrokerUnavailable, ConfigurationError and StateError.
        """
        from worker import log
        from worker.cli.connect_broker import connect

        log.silence_libraries()
        broker = connect(
            self.settings, self.environment, read_only=read_only, logs_damage=logs_damage
        )
        await broker.open()
        try:
            yield broker
        finally:
            await broker.close()


class Seconds(click.FloatRange):
    """An option's type: a positive number of seconds, at most 365 days."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=365 * 24 * 3600.0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Refuses NaN, which passes every range check."""
        seconds = super().convert(value, param, ctx)
        if seconds != seconds:  # noqa: PLR0124 -- true for NaN only
            self.fail("expected a number of seconds", param, ctx)
        return seconds


class OneOf(click.Choice[str]):
    """An option's type: one of the values. The error for another value suggests the nearest one."""

    def __init__(self, what: str, values: Iterable[str]) -> None:
        """`what` is the expected kind of value, for the error: "an entity"."""
        super().__init__(list(values))
        self._what = what

    def get_invalid_choice_message(
        self,
        value: Any,
        ctx: click.Context | None,  # noqa: ARG002 -- click passes it
    ) -> str:
        """The error line for an unknown value."""
        from difflib import get_close_matches

        near = get_close_matches(str(value).lower(), self.choices, 1, 0.7)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(self.choices)}."
        return f"{value!r} is not {self._what}: {hint}"


def now_ms() -> int:
    """The time by the wall clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def say(line: str, severity: str | None = None) -> None:
    """Print a line on standard output; on a terminal, in the colour of the severity."""
    click.echo(_coloured(shown(line), severity), file=sys.stdout)


def say_found(code: str, text: str, severity: str) -> None:
    """Print a violation; on a terminal, its text wraps between words and stays aligned."""
    lead = f"  {code}  "
    for line in _broken(text, len(lead)):
        click.echo(_coloured(lead, severity) + line, file=sys.stdout)
        lead = " " * len(lead)


def say_more(text: str) -> None:
    """Print a further line on a record; on a terminal, it wraps between words."""
    lead = "  "
    for line in _broken(text, 4):
        click.echo(lead + line, file=sys.stdout)
        lead = "    "


def _broken(text: str, indent: int) -> list[str]:
    text = shown(text)
    width = _width()
    if not width:
        return [text]
    return wrap(text, max(width - indent, 20), break_long_words=False, break_on_hyphens=False)


def _coloured(text: str, severity: str | None) -> str:
    shows = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    colour = _STYLES.get(severity or "")
    if not shows or os.environ.get("NO_COLOR") or colour is None:
        return text
    return click.style(text, fg=colour)


def _width() -> int | None:
    """The terminal's width. None if standard output is no terminal and COLUMNS is not set."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return None
    return get_terminal_size().columns


def complain(line: str) -> None:
    """Print a line on standard error. A word of 300 characters or more keeps only its ends."""
    line = _ENDLESS.sub(lambda word: f"{word[0][:100]}…{word[0][-100:]}", shown(line))
    click.echo(f"buddy: {line}", file=sys.stderr)


def confirm(question: str) -> None:
    """Return if a person says yes. Raises click.Abort on no, UsageError if nobody can be asked."""
    try:
        click.confirm(shown(question), abort=True)
    except OSError:
        raise UsageError("nobody can be asked, standard input is closed: say --yes") from None


def count_of(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: "1 record", "2 records"."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or f'{singular}s'}"


def short_time(moment: datetime, now: datetime) -> str:
    """A moment in UTC for people: the time, preceded by the date unless it is today's."""
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:  # the first and the last hours that a `datetime` holds
        utc = moment
    return f"{utc:%H:%M:%S}" if utc.date() == now.astimezone(UTC).date() else f"{utc:%F %H:%M:%S}"


def print_json(value: Any, *, indented: bool = False) -> None:
    """Print a JSON document on standard output, for programs: UTF-8 in any locale."""
    import msgspec

    encoded = msgspec.json.encode(value)
    click.echo(msgspec.json.format(encoded) if indented else encoded, file=sys.stdout)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    footer: str = "",
    *,
    whole: Container[str] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print a table on standard output, with numbers aligned right.

    Cells wrap between words. Numbers and the cells of `whole` columns never wrap. `styles` has a
    severity for each row; the row's cells get its colour.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    cells = [[_cell(cell) for cell in row] for row in rows]
    by_column = [[column, *texts] for column, *texts in zip(columns, *cells, strict=True)]
    width = max(_width() or _WITHOUT_TERMINAL, _NARROWEST)
    narrow = sum(3 + max(map(len, texts)) for texts in by_column) >= width
    table = Table(caption=shown(footer) or None)
    for index, (column, *texts) in enumerate(by_column):
        numbers = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        unwrapped = numbers or column in whole
        words = [*column.split(), *(texts if unwrapped else " ".join(texts).split())]
        needed = max(map(len, words))
        table.add_column(
            "\n".join(wrap(column, needed)) if narrow else column,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=unwrapped,
            min_width=needed if unwrapped else min(needed, _LONG_WORD),
        )
    for index, row_cells in enumerate(cells):
        style = _STYLES.get(styles[index], "") if styles else ""
        table.add_row(*(Text(text, style) for text in row_cells))
    console = Console(width=width)
    # A title may hold a path, and nobody can copy a path that has line breaks. The terminal itself
    # wraps lines that are too wide.
    console.print(Text(shown(title), "italic"), crop=False, soft_wrap=True)
    console.print(table, crop=False)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(str(value))


def notices(collected: list[str] | None = None) -> Callable[[str], None]:
    """A function that prints notices of file readers on standard error, each line once.

    It also appends these lines to `collected`, if given.
    """
    printed: set[str] = set()

    def notice(line: str) -> None:
        if line not in printed:
            printed.add(line)
            complain(line)
            if collected is not None:
                collected.append(line)

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
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
        transient=False,
    )
