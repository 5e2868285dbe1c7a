"""The order in which the exports at a place were published. Pure.

A name begins with the time of the export's cut, by the clock of its sink. An export whose clock ran
ahead would count as the newest until that time. So before a sink publishes an export, it looks for
exports with a later time. For each it leaves a *mark* `<time>_<name>`: its own time, the other's
name. The mark says that the other export is older. Correct clocks need no marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from worker.exports.layout import id_in

AHEAD: Final = ".ahead"
"""The folder of a place that holds its marks."""

Order = tuple[str, ...]
"""The sort key of exports, oldest first: the times of the marks, then the export's own time."""

_LAST: Final = "~"
"""Sorts after any time: an export marked with a time precedes the export of that time."""


def order_of(name: str, marked: Iterable[str] = ()) -> Order:
    """The order of an export that has marks with these times."""
    return (*sorted({name.partition("_")[0], *marked}), _LAST)


def orders(names: Iterable[str], marks: Iterable[str]) -> dict[str, Order]:
    """The order of each of these exports, newest first. Entries that are no marks are ignored."""
    marked: dict[str, set[str]] = {name: set() for name in names}
    for mark in marks:
        time, name = _parts(mark)
        if name in marked and id_in(f"{time}_{id_in(name)}") is not None:
            marked[name].add(time)
    found = {name: order_of(name, times) for name, times in marked.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True))


def overtaken(there: Mapping[str, Order], name: str) -> list[str]:
    """The marks to write before an export of that name is published."""
    order = order_of(name)
    return [
        f"{order[0]}_{other}"
        for other, known in there.items()
        if known > order and id_in(other) != id_in(name)  # same id: another attempt
    ]


def is_of(mark: str, names: Iterable[str]) -> bool:
    """Whether a mark names one of these exports."""
    return _parts(mark)[1] in names


def _parts(mark: str) -> tuple[str, str]:
    time, _, name = mark.partition("_")
    return time, name
