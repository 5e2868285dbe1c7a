"""What the desk counts of its store."""

from __future__ import annotations

from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from worker.desk.reports import DeskReports
from worker.ops.health import Health
from worker.ops.metrics import Metrics


def test_each_rebuilt_store_counts_once_whichever_process_has_rebuilt_it() -> None:
    clock, metrics = SettableClock(), Metrics()
    reports = DeskReports(metrics, Health(metrics, clock.steady).part("desk"), clock)

    def counted(rebuilt: int, identity: str) -> float | None:
        reports.caught_up(0, rebuilt, identity)
        return metrics.registry.get_sample_value("buddy_state_rebuilt_total", {"state": "desk"})

    with capture_logs() as logs:
        reports.opened()
        assert [counted(0, "one"), counted(0, "one")] == [0, 0], "it was made, or was there"
        assert [counted(1, "two"), counted(1, "two")] == [1, 1], "by this desk, in use"
        reports.opened()
        assert [counted(1, "three"), counted(1, "three")] == [2, 2], "by this desk, as it opened it"
        reports.opened()
        assert counted(0, "three") == 2
        assert [one["event"] for one in logs] == ["desk_started"] * 3
        reports.opened()
        assert [counted(0, "four"), counted(0, "four")] == [3, 3], "by a command before"
    assert [one["event"] for one in logs][-2:] == ["desk_started", "desk_rebuilt"]
