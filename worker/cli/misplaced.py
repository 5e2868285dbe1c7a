"""Tells where a misplaced option belongs: before or after the command."""

from __future__ import annotations

from collections.abc import Sequence

import click


def where_it_goes(error: click.NoSuchOption, arguments: Sequence[str]) -> str | None:
    """A sentence that says where the option belongs; None if no command of the line takes it."""
    here, option = error.ctx, error.option_name
    if here is None:
        return None
    below, above = here, here.parent
    while above is not None:
        if _takes(above.command, above, option):
            return f"{option} goes before {below.info_name!r}: {above.command_path} {option} …"
        below, above = above, above.parent
    path, command = here.command_path, here.command
    for word in arguments:
        named = command.get_command(here, word) if isinstance(command, click.Group) else None
        if named is not None:
            path, command = f"{path} {word}", named
            if _takes(command, here, option):
                return f"{option} goes after {word!r}: {path} {option} …"
    return None


def _takes(command: click.Command, context: click.Context, option: str) -> bool:
    return any(option in parameter.opts for parameter in command.get_params(context))
