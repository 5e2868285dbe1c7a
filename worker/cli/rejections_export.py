"""`buddy rejections export`: writes the originals of rejected records to files."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from worker.cli.console import Context, count_of, now_ms, print_json, progress_bar, say
from worker.cli.desk_store import store_access
from worker.cli.line_files import LineFiles, new_directory, one_line
from worker.cli.rejection_lists import ALL, chosen, filters

if TYPE_CHECKING:
    from worker.brokers.contract import Broker
    from worker.desk.queries import Candidate

_AT_ONCE: Final = 1_000


@click.command("export")
@click.argument("directory", type=click.Path(path_type=Path))
@filters
@ALL
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.pass_obj
def export_command(
    context: Context, /, directory: Path, everything: bool, as_json: bool, **options: Any
) -> int:
    """Write the originals of open rejections, or of all, to files in DIRECTORY.

    DIRECTORY is new or empty. It gets a file <entity>.ndjson for each entity, which `check` and
    `send` read. A record that is sent from there is a new one: to send it again as it was, with its
    key and headers, use `replay`.
    """
    from worker.desk.pages import Pages

    new_directory(directory)
    files = LineFiles()
    written: Counter[str] = Counter()
    pages = Pages(store_access(context), chosen(options, now_ms()), limit=_AT_ONCE, once=True)

    async def run() -> None:
        with progress_bar(quiet=as_json) as bar:
            writing = bar.add_task("writing", total=None)
            async with context.broker(read_only=True, logs_damage=False) as broker:
                try:
                    while candidates := await pages.next(broker):
                        await write(broker, candidates)
                        bar.advance(writing, len(candidates))
                finally:
                    await pages.close()

    async def write(broker: Broker, candidates: list[Candidate]) -> None:
        from worker.desk.counts import OPEN
        from worker.desk.originals import read_messages, read_original

        wanted = [one for one in candidates if everything or one.state == OPEN]
        async for message in read_messages(broker, wanted):
            found = read_original(message)
            if found is None:
                pages.skipped["not written by a worker"] += 1
                continue
            if found.value is None:
                pages.skipped["a deletion, or too large to be kept"] += 1
                continue
            if not _is_json(found.value):
                pages.skipped["no JSON"] += 1
                continue
            entity = found.rejection.entity
            files.write(directory / f"{entity}.ndjson", one_line(found.value))
            written[entity] += 1

    try:
        asyncio.run(run())
    finally:
        files.close()
    if as_json:
        print_json({"written": dict(written), "skipped": dict(pages.skipped)})
        return 0
    say(f"{count_of(written.total(), 'record')} written to {directory}.")
    for reason, number in pages.skipped.items():
        say(f"{count_of(number, 'rejection')} left out: {reason}.")
    return 0


def _is_json(record: bytes) -> bool:
    try:
        msgspec.json.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True
