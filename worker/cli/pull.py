"""`buddy pull`: keeps a folder of finished exports up to date, over HTTP."""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import TaskID

from worker.cli.console import Context, OneOf, count_of, print_json, progress_bar, say
from worker.cli.settings import TOKEN, secret
from worker.exports.layout import FORMATS
from worker.pull.folder import LATEST, pull
from worker.pull.server import ExportServer


@click.command("pull")
@click.argument("url")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--format", "formats", type=OneOf("a format", FORMATS), multiple=True,
    help="Only exports with this format. Repeatable.",
)  # fmt: skip
@click.option(
    "--bookmark", metavar="NAME", help="This feed, with all of its increments; schedule:NAME."
)
@click.option("--token-file", metavar="FILE", help="File that holds the token of the API.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
@click.pass_obj
def pull_command(
    context: Context,
    url: str,
    folder: Path,
    formats: tuple[str, ...],
    bookmark: str | None,
    token_file: str | None,
    as_json: bool,
) -> int:
    """Fetch from the API at URL what DIR lacks: the latest export, or the increments of a feed.

    Each export appears in DIR whole, with the SHA-256 that its manifest lists. The link
    DIR/latest names the newest. If interrupted, the next pull fetches only what is missing. The
    exit code is 1 if there is no such export, and 4 if the server cannot be reached.
    """
    server = ExportServer(url, secret(token_file, context.environment, TOKEN))
    with progress_bar(quiet=as_json) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name.rpartition("/")[2], total=total)
            bar.update(tasks[name], completed=done)

        fetched = pull(server, folder, bookmark, formats, advance)
    newest = folder / LATEST
    if as_json:
        print_json({"fetched": fetched, "latest": str(newest.resolve())})
    elif fetched:
        say(f"{count_of(len(fetched), 'export')} fetched, the newest is {newest.resolve()}")
    else:
        say(f"{folder} is up to date.")
    return 0
