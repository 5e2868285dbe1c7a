"""`python -m tests.bench`: measure, and print one table."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
from rich.console import Console

from tests.bench import (
    backlog,
    desk,
    embedded_path,
    hotkey,
    http_crowd,
    http_path,
    index,
    index_sizes,
    judging,
    live,
    machine,
    profiling,
    readers,
    scaling,
    validation,
    whole_export,
    writers,
)
from tests.bench.figures import Figure, Skipped, show
from tests.bench.setting import EXPORT_ROWS, QUICK_RECORDS, RECORDS, SECONDS, Bench

_WIDTH = 200  # of the table where no terminal tells


def _index(bench: Bench) -> list[Figure]:
    """The figures of `tests.bench.index`, with the aims."""
    found = index.run() if not bench.quick else index.run(users=50_000, matches=5_000)
    aims = {
        "index: look-up of a user": (400_000.0, False),
        "index: ready after a restart": (5_000.0, True),
        "index: memory": (100.0, True),
    }
    figures = []
    for name, value, unit in found:
        aim, at_most = next(
            (a for start, a in aims.items() if name.startswith(start)), (None, False)
        )
        short = name.removeprefix("index: ")
        figures.append(
            Figure(section="index", name=short, value=value, unit=unit, aim=aim, at_most=at_most)
        )
    return [*figures, *index_sizes.run(bench)]


SECTIONS: dict[str, Callable[[Bench], Iterable[Figure]]] = {
    "validation": validation.run,
    "task": judging.run,
    "embedded": embedded_path.run,
    "backlog": backlog.run,
    "users": backlog.run_users,
    "live": live.run,
    "hotkey": hotkey.run,
    "workers": scaling.run_workers,
    "partitions": scaling.run_partitions,
    "writers": writers.run,
    "readers": readers.run,
    "exports": whole_export.run,
    "index": _index,
    "desk": desk.run,
    "http": http_path.run,
    "crowd": http_crowd.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; 0 whatever the figures are, 1 if a section failed."""
    asked = _parser().parse_args(arguments)
    head = machine.head()
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    if "Warning" in head:
        print(f"warning: {head['Warning']}", file=sys.stderr)
    logging.basicConfig(level=logging.CRITICAL)  # aiokafka's: what fails is raised
    # So that a terminated bench ends what it has started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with Bench(
        quick=asked.quick,
        records=asked.records,
        seconds=asked.seconds,
        export_rows=asked.export_rows,
    ) as bench:
        if asked.profile:
            profiling.profile(bench, asked.profile)
            return 0
        figures: list[Figure] = []
        failed = False
        for name in asked.only or SECTIONS:
            bench.say(name)
            try:
                figures += SECTIONS[name](bench)
            except Skipped as reason:
                head[f"No {name}"] = str(reason)
            except Exception as error:  # noqa: BLE001 -- hours of other figures are not to be lost
                head[f"No {name}"] = f"it failed: {error!r}"
                traceback.print_exc()
                failed = True
    head["Load at end"] = f"{machine.load():.2f}"
    show(console, head, figures)
    if asked.json is not None:
        document = {"machine": head, "figures": [_plain(figure) for figure in figures]}
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(document)) + b"\n")
    return int(failed)


def _plain(figure: Figure) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(figure)
    return plain | {"met": figure.met}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=_listed())
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_RECORDS:,} records, one round"
    )
    parser.add_argument(
        "--records", type=int, help=f"so many records instead of {RECORDS:,}: to try the bench out"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"of a step of the live rate, instead of {SECONDS:.0f}; what else runs for a time "
        "takes a share of it",
    )
    parser.add_argument(
        "--export-rows",
        type=int,
        metavar="ROWS",
        help=f"of the whole export, instead of {EXPORT_ROWS:,}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument(
        "--profile",
        choices=profiling.SECTIONS,
        help="measure nothing, but print where the CPU time of that section goes",
    )
    return parser


_listed = partial(" ".join, ["sections:", *SECTIONS])

if __name__ == "__main__":
    sys.exit(main())
