"""What the commands share: settings, a broker, tables and JSON on standard output.

What comes from outside (names of files, fields and columns, words of a broker) is printed through
`say`, `complain` and `print_table` alone: they let no control character through to a terminal.
Streams are named to click, which would else write UTF-8 to one that is ASCII.
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
"""Columns of a table at least, whatever the terminal has: a code takes 22."""
_WITHOUT_TERMINAL: Final = 160
_LONG_WORD: Final = 22
_ENDLESS: Final = re.compile(r"\S{300,}")
_STYLES: Final = {"error": "red", "warning": "yellow"}


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

        From here on there may be something to be logged. Raises ConfigurationError.
        """
        from worker import log
        from worker.cli.settings import load, unknown_variables

        log.to_stderr("warning")
        if unknown := unknown_variables(self.environment):
            names = (f"{n} (did you mean {near}?)" if near else n for n, near in unknown.items())
            complain(f"no such setting, ignored: {', '.join(names)}")
        return load(self._config, self.environment, self._options)

    @property
    def names(self) -> Names:
        """The names of the topics."""
        from worker.core.topics import Names

        return Names(self.settings.prefix)

    @asynccontextmanager
    async def broker(self, *, looks: bool = False) -> AsyncIterator[Broker]:
        """The broker, open; one that only `looks` makes no log where there is none.

        Raises BrokerUnavailable and ConfigurationError.
        """
        from worker import log
        from worker.cli.connect_broker import connect

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


class OneOf(click.Choice[str]):
    """One of the values; the nearest one is named where it is none of them."""

    def __init__(self, what: str, values: Iterable[str]) -> None:
        """`what` an unknown value is not: "an entity"."""
        super().__init__(list(values))
        self._what = what

    def get_invalid_choice_message(
        self,
        value: Any,
        ctx: click.Context | None,  # noqa: ARG002 -- click hands it over
    ) -> str:
        """The line for a value that is none of them."""
        from difflib import get_close_matches

        near = get_close_matches(str(value).lower(), self.choices, 1, 0.7)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(self.choices)}."
        return f"{value!r} is not {self._what}: {hint}"


def now_ms() -> int:
    """The clock of the program, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def say(line: str, severity: str | None = None) -> None:
    """A line on standard output, on a terminal in the colour of the severity."""
    click.echo(_coloured(shown(line), severity), file=sys.stdout)


def say_found(code: str, text: str, severity: str) -> None:
    """A violation; on a terminal, its text goes on below itself, broken between words."""
    lead = f"  {code}  "
    for line in _broken(text, len(lead)):
        click.echo(_coloured(lead, severity) + line, file=sys.stdout)
        lead = " " * len(lead)


def say_more(text: str) -> None:
    """What goes with the violations of a record; on a terminal, broken between words."""
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
    """Columns of the terminal; None where standard output is none, and nobody has said COLUMNS."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return None
    return get_terminal_size().columns


def complain(line: str) -> None:
    """A line on standard error. Of a path of thousands of characters its ends are enough."""
    line = _ENDLESS.sub(lambda word: f"{word[0][:100]}…{word[0][-100:]}", shown(line))
    click.echo(f"buddy: {line}", file=sys.stderr)


def confirm(question: str) -> None:
    """Go on if a person says yes. UsageError where nobody can be asked."""
    try:
        click.confirm(shown(question), abort=True)
    except OSError:
        raise UsageError("nobody can be asked, standard input is closed: say --yes") from None


def count_of(number: int, singular: str, plural: str = "") -> str:
    """So many of them: "1 record", "2 records"."""
    return f"{number} {singular}" if number == 1 else f"{number} {plural or f'{singular}s'}"


def short_time(moment: datetime, now: datetime) -> str:
    """A moment in UTC as people read it: the time, before it the day if it is not today's."""
    utc = moment.astimezone(UTC)
    return f"{utc:%H:%M:%S}" if utc.date() == now.astimezone(UTC).date() else f"{utc:%F %H:%M:%S}"


def print_json(value: Any, *, indented: bool = False) -> None:
    """One JSON document on standard output, for programs: UTF-8 whatever the terminal takes."""
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
    """A table on standard output; numbers to the right.

    Cells are broken between words; those of `whole` columns, and numbers, never. `styles` has a
    severity for each row, whose cells get its colour.
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
    for place, (column, *texts) in enumerate(by_column):
        numbers = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        kept = numbers or column in whole
        words = [*column.split(), *(texts if kept else " ".join(texts).split())]
        needed = max(map(len, words))
        table.add_column(
            "\n".join(wrap(column, needed)) if narrow else column,
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=kept,
            min_width=needed if kept else min(needed, _LONG_WORD),
        )
    for place, row_cells in enumerate(cells):
        style = _STYLES.get(styles[place], "") if styles else ""
        table.add_row(*(Text(text, style) for text in row_cells))
    console = Console(width=width)
    # A title may hold a path, which nobody could copy if it were broken. A terminal breaks what is
    # wider than itself.
    console.print(Text(shown(title), "italic"), crop=False, soft_wrap=True)
    console.print(table, crop=False)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else shown(str(value))


def notices(kept: list[str] | None = None) -> Callable[[str], None]:
    """What takes the notices of a file's readers: each line once, on standard error.

    The lines are `kept` as well, if a list is given.
    """
    told: set[str] = set()

    def notice(line: str) -> None:
        if line not in told:
            told.add(line)
            complain(line)
            if kept is not None:
                kept.append(line)

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
