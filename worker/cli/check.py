"""`buddy check`: verdicts on files, without a broker."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from worker.checking import Checked, Checker, Warned
from worker.cli.console import Context, notices, now_ms, progress_bar
from worker.cli.findings import (
    FindingsList,
    print_annotations,
    print_for_people,
    print_for_programs,
)
from worker.cli.inputs import Mismatches, standard_input
from worker.cli.line_files import LineFiles, new_directory, one_line
from worker.cli.send import ENTITY, read_limit, sources_of
from worker.errors import UsageError
from worker.files import InputFile, as_utf8, in_entity_order, read_ndjson


@click.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@ENTITY
@click.option(
    "--accepted", type=click.Path(path_type=Path), help="New or empty directory for rows."
)
@click.option("--rejected", type=click.Path(path_type=Path), help="File for rejections, NDJSON.")
@click.option("--warnings", type=click.Path(path_type=Path), help="File for warnings, NDJSON.")
@click.option("--json", "as_json", is_flag=True, help="Print counts and findings as JSON.")
@click.option("--github", is_flag=True, help="Print findings as annotations of GitHub Actions.")
@click.pass_obj
def check_command(
    context: Context,
    paths: tuple[str, ...],
    entity: str | None,
    accepted: Path | None,
    rejected: Path | None,
    warnings: Path | None,
    as_json: bool,
    github: bool,
) -> int:
    """Validate NDJSON, CSV, JSON or XLSX files, or directories of them, without a broker.

    Files may be Buddy exports, saved by Excel or written by hand. All but XLSX may be compressed
    with gzip. If PATH is -, the command reads NDJSON from standard input. The exit code is 1 if any
    record is rejected, or if a file holds another number of records than it or its export states.
    """
    if as_json and github:
        raise click.UsageError("Say either --json or --github.")
    settings = context.settings
    checker = Checker(now_ms, settings.clock_skew_seconds, settings.max_record_bytes)
    noticed: list[str] = []
    notice = notices(noticed)
    mismatches = Mismatches(notice)
    sources = sources_of(paths, entity, notice, mismatches.add)
    if sources is None:
        stdin = as_utf8(standard_input(), "-")
        records = read_ndjson(stdin, str(entity), "-", limit=read_limit(settings))
    else:
        records = in_entity_order(
            sources, limit=read_limit(settings), notice=notice, mismatch=mismatches.add
        )
    found = FindingsList()
    _refuse_overwriting(sources or [], [path for path in (rejected, warnings) if path is not None])
    with ExitStack() as stack:
        outputs = _Outputs(accepted, rejected, warnings)
        stack.callback(outputs.close)
        bar = stack.enter_context(progress_bar(quiet=as_json or github))
        checking = bar.add_task("checking", total=None)
        for count, checked in enumerate(checker.check(records), 1):
            outputs.write(checked)
            found.add(checked)
            if count % 1000 == 0:
                bar.update(checking, completed=count)
    if as_json:
        print_for_programs(checker, found, mismatches.found, noticed)
    elif github:
        print_annotations(found, mismatches.found)
    else:
        print_for_people(checker, found)
        mismatches.print_count()
    return 1 if checker.rejected.total() or mismatches.found else 0


def _refuse_overwriting(sources: list[InputFile], outputs: list[Path]) -> None:
    """Raises UsageError if an output is one of the checked files, or both outputs are one file."""
    real = [path.resolve() for path in outputs]
    read = {source.path.resolve() for source in sources}
    for path in outputs:
        if path.resolve() in read:
            raise UsageError(f"{path} is to be checked: name another file for what is found")
    if len(set(real)) < len(real):
        raise UsageError("--rejected and --warnings name one file: name two")


class _Outputs:
    """The requested output files. Raises UsageError and StateError with one line."""

    def __init__(self, accepted: Path | None, rejected: Path | None, warnings: Path | None) -> None:
        self._files = LineFiles()
        self._accepted = accepted
        self._encode = msgspec.json.Encoder().encode
        if accepted is not None:
            new_directory(accepted)
        self._rejected = rejected
        self._warnings = warnings
        for path in (rejected, warnings):
            if path is not None:
                self._files.open(path)

    def write(self, checked: Checked) -> None:
        """Write the row, the warnings or the rejection of one record."""
        if checked.rejection is not None:
            if self._rejected is not None:
                self._files.write(self._rejected, one_line(checked.rejection))
            return
        if self._accepted is not None and checked.row is not None:
            self._files.write(self._accepted / f"{checked.entity}.ndjson", checked.row)
        if self._warnings is not None and checked.violations:
            warned = Warned(checked.entity, checked.key, checked.place, checked.violations)
            self._files.write(self._warnings, self._encode(warned))

    def close(self) -> None:
        """Flush and close all files. Raises the first error after all are closed."""
        self._files.close()
