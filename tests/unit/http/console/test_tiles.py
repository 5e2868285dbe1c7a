"""The figures of the overview."""

from __future__ import annotations

from worker.http.console.history import HistoryColumn, Window
from worker.http.console.tiles import Tile, tiles

NOW = HistoryColumn(
    arrived=120.0, accepted=90.0, rejected=10.0, parked=7, lag=0, median=0.04, slowest=2.5
)


def found(*columns: HistoryColumn, now: HistoryColumn = NOW) -> dict[str, Tile]:
    return {tile.kind: tile for tile in tiles(Window(600, list(columns), now, 0.0))}


def test_each_figure_has_its_unit_and_says_more_in_a_note() -> None:
    shown = {kind: (t.figure, t.unit, t.note) for kind, t in found(NOW).items()}
    assert shown == {
        "arrived": ("120", "a second", "peak 120 a second"),
        "accepted": ("90", "a second", "peak 90 a second"),
        "rejected": ("10", "a second", "10 % of the verdicts"),
        "parked": ("7", "records", "wait for a reference or an address"),
        "lag": ("0", "records", "are still to be read"),
        "latency": ("40", "ms", "99 % within 2.5 s"),
    }


def test_a_chart_is_told_in_words() -> None:
    label = found(NOW, NOW._replace(arrived=5.5))["arrived"].label
    assert label == "Arriving, the last 10 minutes: from 5.5 a second to 120 a second"


def test_what_is_unknown_is_no_zero() -> None:
    tile = found(HistoryColumn(), now=HistoryColumn())["rejected"]
    assert (tile.figure, tile.unit, tile.line) == ("-", "", "")
    assert tile.note == "none in this time"
    assert tile.label.endswith("nothing is known yet")


def test_without_verdicts_there_is_no_share() -> None:
    quiet = NOW._replace(accepted=0.0, rejected=0.0)
    assert found(quiet, now=quiet)["rejected"].note == "none in this time"
