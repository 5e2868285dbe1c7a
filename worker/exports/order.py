"""In which order the exports at a place were published. Pure.

A name begins with the time of the export's cut, by the clock of its sink. An export whose clock ran
ahead would count as the newest until that time. So whoever publishes an export first leaves a
*mark* `<time>_<name>` for each one that is there under a later time than its own: that one came
before. Where clocks are right there are no marks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from worker.exports.layout import id_in

AHEAD: Final = ".ahead"
"""Where a place keeps its marks."""

Order = tuple[str, ...]
"""By this, exports sort, the oldest first: the times of those that came after, then its own."""

_LAST: Final = "~"
"""After any time: what was marked with a time came before the export of that time."""


def order_of(name: str, marked: Iterable[str] = ()) -> Order:
    """The order of an export that was marked with these times."""
    return (*sorted({name.partition("_")[0], *marked}), _LAST)


def orders(names: Iterable[str], marks: Iterable[str]) -> dict[str, Order]:
    """The order of each of these exports, the newest first; what is no mark is passed over."""
    marked: dict[str, set[str]] = {name: set() for name in names}
    for mark in marks:
        time, name = _parts(mark)
        if name in marked and id_in(f"{time}_{id_in(name)}") is not None:
            marked[name].add(time)
    found = {name: order_of(name, times) for name, times in marked.items()}
    return dict(sorted(found.items(), key=lambda item: (item[1], item[0]), reverse=True))


def overtaken(there: Mapping[str, Order], name: str) -> list[str]:
    """The marks to leave before an export of that name is published."""
    order = order_of(name)
    return [
        f"{order[0]}_{other}"
        for other, known in there.items()
        if known > order and id_in(other) != id_in(name)  # that is another attempt at it
    ]


def is_of(mark: str, names: Iterable[str]) -> bool:
    """Whether the export that a mark is of is among these."""
    return _parts(mark)[1] in names


def _parts(mark: str) -> tuple[str, str]:
    time, _, name = mark.partition("_")
    return time, name
