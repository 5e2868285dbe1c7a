"""`buddy`: the group of all commands, and the reporting of errors.

A command raises `worker.errors.BuddyError` with one line. This module prints the line on standard
error and returns the exit code to the caller. Exit codes: docs/operations/running.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from worker import __version__
from worker.cli import streams
from worker.cli.console import Context, OneOf, complain
from worker.errors import BuddyError, ReaderGoneError, StateError, UsageError

_INTERRUPTED = 130
_COMMANDS: Final = {
    "run": ("run", "Run worker, sink and desk in one process."),
    "worker": ("run", "Run a worker: validate records as they arrive."),
    "sink": ("run", "Run a sink: store accepted rows and make exports."),
    "desk": ("run", "Run a desk: follow rejections, for 'buddy rejections'."),
    "serve": ("serve", "Serve the HTTP API: records in, verdicts back."),
    "send": ("send", "Send records from files, directories or standard input."),
    "delete": ("send", "Delete rows of an entity by their keys."),
    "check": ("check", "Validate files without a broker."),
    "export": ("export", "Request an export from the sink."),
    "exports": ("exports", "List finished exports, or find the latest one."),
    "pull": ("pull", "Fetch finished exports over HTTP into a folder."),
    "rejections": ("rejections", "Show what was rejected, and why."),
    "topics": ("admin", "Create the topics."),
    "status": ("status", "Show workers, progress, counts and incidents."),
    "reprocess": ("admin", "Judge records of an entity again."),
    "log": ("log", "Check and repair the embedded broker's log."),
    "schema": ("schema", "Print JSON Schemas, or AsyncAPI of the topics."),
    "token": ("serve", "Make a token for the HTTP API."),
    "config": ("admin", "Print the effective settings; secrets are masked."),
    "demo": ("demo", "Stream made-up records through the whole program."),
}
"""Each command's module, and its line in `buddy --help`."""


class Commands(click.Group):
    """Imports a command's module when the command is used: `buddy --help` imports none."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """All commands, in the order in which a user meets them."""
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command of that name, or None."""
        if name not in _COMMANDS:
            return None
        from importlib import import_module

        module, _ = _COMMANDS[name]
        command = getattr(import_module(f"worker.cli.{module}"), f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names. An unknown name's error suggests near ones."""
        try:
            return super().resolve_command(context, args)
        except click.NoSuchCommand as error:
            raise click.NoSuchCommand(
                error.command_name, possibilities=_COMMANDS, ctx=context
            ) from None

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands of `buddy --help`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


_HELP = """Validate a stream of Buddy Program records, explain every rejection, cut exports.

\b
In one terminal:  buddy run
in another:       buddy send users.ndjson --wait
and then:         buddy export --wait
"""


@click.group(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="buddy")
@click.option("--config", metavar="FILE", help="TOML file of settings (default: buddy.toml).")
@click.option("--broker", metavar="URL", help="embedded:DIRECTORY or kafka://host:port,…")
@click.option("--prefix", help="First part of every topic name.")
@click.option("--data", metavar="DIR", help="Directory of rebuildable state.")
@click.option("--exports", metavar="PLACE", help="Place of finished exports: a directory or s3://…")
@click.option("--log-level", type=OneOf("a level", ["debug", "info", "warning", "error"]))
@click.pass_context
def cli(context: click.Context, /, config: str | None, **options: Any) -> None:
    """The group of all commands. A command reads the settings when it needs them."""
    context.obj = Context(config, options, os.environ)


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Prints an error as one line on standard error."""
    try:
        _check_directory()
        result = _invoke(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        return _complain(_usage_line(error, arguments), 2)
    except ReaderGoneError as error:
        return error.exit_code
    except BuddyError as error:
        return _complain(str(error), error.exit_code)
    except UnicodeEncodeError:  # a byte of an argument became a surrogate
        return _complain("an argument holds a byte that is not UTF-8", UsageError.exit_code)
    except OSError as error:
        if not isinstance(error.filename, str):  # no path of a user: a fault of the program
            raise
        return _complain(
            f"{error.filename} cannot be used: {error.strerror}; look at this path, its owner and "
            "its rights",
            StateError.exit_code,
        )
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", _INTERRUPTED)
    return result


def _check_directory() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise StateError(
            f"the working directory cannot be used ({error.strerror}): change to one that exists"
        ) from None


def _invoke(arguments: Sequence[str]) -> int:
    try:
        result = cli.main(list(arguments), prog_name="buddy", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        return 2
    return result if isinstance(result, int) else 0


def _usage_line(error: click.ClickException, arguments: Sequence[str]) -> str:
    text = " ".join(error.format_message().split())
    if isinstance(error, click.NoSuchOption):
        from worker.cli.misplaced import where_it_goes

        if there := where_it_goes(error, arguments):
            return there
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "buddy"
    return f"{text} See '{path} --help'."


def _complain(text: str, code: int) -> int:
    complain(text)
    return code


def main() -> None:
    """The console script."""
    streams.prepare()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
