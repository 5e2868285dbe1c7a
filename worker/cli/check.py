"""`buddy check`: verdicts on files, without a broker."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from schemas import ENTITIES
from worker.checking import Checked, Checker, Warned
from worker.cli.console import Context, notices, now_ms, print_json, print_table, progress_bar
from worker.cli.send import ENTITY, read_limit, sources_of
from worker.errors import StateError, UsageError
from worker.files import Source, as_utf8, in_entity_order, read_ndjson

_SHOWN = 20
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


@click.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@ENTITY
@click.option(
    "--accepted", type=click.Path(path_type=Path), help="New or empty directory for rows."
)
@click.option("--rejected", type=click.Path(path_type=Path), help="File for rejections, NDJSON.")
@click.option("--warnings", type=click.Path(path_type=Path), help="File for warnings, NDJSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
@click.pass_obj
def check_command(
    context: Context,
    paths: tuple[str, ...],
    entity: str | None,
    accepted: Path | None,
    rejected: Path | None,
    warnings: Path | None,
    as_json: bool,
) -> int:
    """Validate files without a broker: NDJSON, CSV, JSON or XLSX, or directories of them.

    Files may be our exports, saved by Excel or made by hand, and packed with gzip; - is NDJSON on
    standard input. Exit code 1 if anything is rejected.
    """
    settings = context.settings
    checker = Checker(now_ms, settings.clock_skew_seconds, settings.max_record_bytes)
    told: list[str] = []
    notice = notices(told)
    sources = sources_of(paths, entity, notice)
    if sources is None:
        stdin = as_utf8(sys.stdin.buffer, "-")
        records = read_ndjson(stdin, str(entity), "-", limit=read_limit(settings))
    else:
        records = in_entity_order(sources, limit=read_limit(settings), notice=notice)
    shown: list[Checked] = []
    warned: Counter[str] = Counter()
    _refuse_overwriting(sources or [], [path for path in (rejected, warnings) if path is not None])
    with ExitStack() as stack:
        outputs = _Outputs(accepted, rejected, warnings)
        stack.callback(outputs.close)
        bar = stack.enter_context(progress_bar(quiet=as_json))
        checking = bar.add_task("checking", total=None)
        for count, checked in enumerate(checker.check(records), 1):
            outputs.write(checked)
            if checked.rejection is None:
                warned.update({found.code.value for found in checked.violations})
            elif len(shown) < _SHOWN:
                shown.append(checked)
            if count % 1000 == 0:
                bar.update(checking, completed=count)
    _print(checker, shown, warned, told, as_json=as_json)
    return 1 if checker.rejected.total() else 0


def _refuse_overwriting(sources: list[Source], outputs: list[Path]) -> None:
    """Raises UsageError where an output is one of the files that are checked, or both are one."""
    real = [path.resolve() for path in outputs]
    read = {source.path.resolve() for source in sources}
    for path in outputs:
        if path.resolve() in read:
            raise UsageError(f"{path} is to be checked: name another file for what is found")
    if len(set(real)) < len(real):
        raise UsageError("--rejected and --warnings name one file: name two")


class _Outputs:
    """The files that were asked for. Raises UsageError and StateError with one line."""

    def __init__(self, accepted: Path | None, rejected: Path | None, warnings: Path | None) -> None:
        self._files: list[BinaryIO] = []
        self._accepted = accepted
        self._rows: dict[str, BinaryIO] = {}
        self._encode = msgspec.json.Encoder().encode
        if accepted is not None:
            try:
                accepted.mkdir(parents=True, exist_ok=True)
                full = any(accepted.iterdir())
            except OSError as error:
                raise _unwritable(accepted, error) from None
            if full:
                raise UsageError(f"{accepted} is not empty: name a new or an empty directory")
        self._rejected = None if rejected is None else self._open(rejected)
        self._warnings = None if warnings is None else self._open(warnings)

    def write(self, checked: Checked) -> None:
        """Write what one record gives."""
        if checked.rejection is not None:
            if self._rejected is not None:
                # Line ends stand only between the tokens of an indented record.
                self._line(self._rejected, checked.rejection.translate(_ONE_LINE))
            return
        if self._accepted is not None and checked.row is not None:
            if checked.entity not in self._rows:
                path = self._accepted / f"{checked.entity}.ndjson"
                self._rows[checked.entity] = self._open(path)
            self._line(self._rows[checked.entity], checked.row)
        if self._warnings is not None and checked.violations:
            warned = Warned(checked.entity, checked.key, checked.place, checked.violations)
            self._line(self._warnings, self._encode(warned))

    def close(self) -> None:
        """Write what is left and close; the first error is raised when all are closed."""
        failed: StateError | None = None
        for file in self._files:
            try:
                file.close()
            except OSError as error:
                failed = failed or _unwritable(Path(file.name), error)
        if failed is not None:
            raise failed

    def _open(self, path: Path) -> BinaryIO:
        try:
            file = path.open("wb")
        except OSError as error:
            raise _unwritable(path, error) from None
        self._files.append(file)
        return file

    def _line(self, file: BinaryIO, data: bytes) -> None:
        try:
            file.write(data + b"\n")
        except OSError as error:
            raise _unwritable(Path(file.name), error) from None


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(f"{path} cannot be written: {error.strerror}")


def _print(
    checker: Checker,
    shown: list[Checked],
    warned: Counter[str],
    told: list[str],
    *,
    as_json: bool,
) -> None:
    accepted, rejected = checker.accepted.total(), checker.rejected.total()
    if as_json:
        print_json(
            {
                "accepted": dict(checker.accepted),
                "rejected": dict(checker.rejected),
                "codes": {f"{e}.{code}": n for (e, code), n in sorted(checker.codes.items())},
                "unknown_fields": {e: n for e, n in checker.unknown_fields.items() if n},
                "notices": told,
            }
        )
        return
    if shown:
        _print_faults(shown)
        if rejected > len(shown):
            click.echo(f"… and {rejected - len(shown)} more: --rejected FILE lists them all.")
    rows = [(e, checker.accepted[e], checker.rejected[e]) for e in ENTITIES]
    used = [row for row in rows if row[1] or row[2]]
    if used:
        print_table("Verdicts", ("entity", "accepted", "rejected"), used)
    for code, count in sorted(warned.items()):
        click.echo(f"{count} accepted with the warning {code}: --warnings FILE lists them.")
    click.echo(f"{accepted} accepted, {rejected} rejected.")


def _print_faults(shown: list[Checked]) -> None:
    columns = ["file", "sheet", "line", "column", "code", "expected"]
    rows = [list(row) for row in _faults(shown)]
    if not any(checked.place.sheet for checked in shown):
        del columns[1]
        for row in rows:
            del row[1]
    print_table("What is wrong where", columns, rows)


def _faults(shown: list[Checked]) -> Iterator[tuple[str, str, str, str, str, str]]:
    for checked in shown:
        place = checked.place
        where = (place.path, place.sheet or "", str(place.line))
        for found in checked.violations[:5]:
            yield *where, found.field, found.code.value, found.message
            where = ("", "", "")
