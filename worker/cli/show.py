"""`buddy rejections show`: one rejection, with its original beside its violations."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from worker.cli.console import Context, print_json, say, say_found, say_more, short_time
from worker.cli.desk_store import open_desk
from worker.desk.choosing import read_coordinate
from worker.desk.masking import Masked, masked
from worker.errors import UsageError
from worker.stream import Message

if TYPE_CHECKING:
    from worker.desk.queries import RejectionListed

_PATIENCE: Final = 20.0


class _Shown(msgspec.Struct):
    """What `--json` prints."""

    coordinate: str
    state: str
    cause: str | None
    rejection: msgspec.Raw


@click.command("show")
@click.argument("coordinate")
@click.option("--json", "as_json", is_flag=True, help="Print the rejection itself, as JSON.")
@click.pass_obj
def show_command(context: Context, coordinate: str, as_json: bool) -> int:
    """Show one rejection: what was wrong, what became of it, and the original.

    COORDINATE is that of the record (in.users/3/17) or of the rejection (rejected.users/3/5).
    Values of the original are masked unless the setting show_values is on.
    """
    asked = read_coordinate(context.names, coordinate)

    async def run() -> tuple[RejectionListed, Message]:
        from worker.desk import queries
        from worker.desk.originals import read_message

        async with open_desk(context, quiet=as_json) as (broker, store):
            listed = queries.at_coordinate(store, asked)
            if listed is None:
                raise UsageError(f"there is no rejection at {asked}, or no longer")
            message = await read_message(broker, listed.coordinate, _PATIENCE)
            if message is None:
                raise UsageError(f"the rejection at {listed.coordinate} is no longer there")
            return listed, message

    listed, message = asyncio.run(run())
    value = message.value or b""
    if as_json:
        print_json(_Shown(listed.coordinate, listed.state, listed.cause, msgspec.Raw(value)))
    else:
        _print(listed, message, masks=not context.settings.show_values)
    return 0


def _print(listed: RejectionListed, message: Message, *, masks: bool) -> None:
    from worker.desk.originals import read_original

    found = read_original(message)
    if found is None:
        say(f"The rejection at {listed.coordinate} was not written by a worker: see --json.")
        return
    rejection, record = found.rejection, found.value
    at = short_time(msgspec.convert(rejection.rejected_at, datetime), datetime.now(UTC))
    say(f"{at}  {listed.source}  key {rejection.key or '-'}  {listed.state}")
    for violation in rejection.violations:
        field = f"{violation.field}: " if violation.field else ""
        say_found(violation.code.value, f"{field}{violation.message}", violation.severity)
    if listed.cause is not None:
        say_more(f"caused by the rejection of {listed.cause}")
    if listed.producer:
        say_more(f"sent by {listed.producer}")
    say_more(f"the rejection is {listed.coordinate}")
    faulty = {re.split(r"[\[.]", violation.field)[0] for violation in rejection.violations}
    if record is None:
        say("The record was a deletion, or too large to be kept.")
        return
    try:
        content = msgspec.json.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        shape = f"{len(record)} bytes that are no JSON"
        say(f"The record: {shape}" if masks else f"The record: {record!r}")
        return
    say("The record:" + (" (values masked, see show_values)" if masks else ""))
    for line in _lines(masked(content) if masks else content, faulty):
        say(line)


def _lines(content: Any, faulty: set[str]) -> Iterator[str]:
    """The record, a field a line; those with violations are marked."""
    if not isinstance(content, dict):
        yield f"  {_text(content)}"
        return
    for name, value in content.items():
        mark = ">" if name in faulty else " "
        yield f"{mark} {_text(name)}: {_text(value)}"
    for name in sorted(faulty - content.keys() - {""}):
        yield f"> {_text(name)} is not there"


def _text(value: Any) -> str:
    return value.text if isinstance(value, Masked) else msgspec.json.encode(value).decode()
