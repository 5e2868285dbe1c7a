"""What was skipped in a topic that no service reads is told once, by the service that writes it."""

from __future__ import annotations

from structlog.testing import capture_logs

from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.ops.skips import Skips
from worker.stream import Partition

REJECTED = Partition("p.rejected.users", 1)
READ = Partition("p.in.users", 1)


def test_each_skip_is_told_once_and_takes_readiness_under_a_running_service() -> None:
    metrics = Metrics()
    part = Health(metrics, lambda: 0).part("worker")
    part.restored()
    skips = Skips(metrics, part, ".rejected.")
    with capture_logs() as logs:
        skips.update({REJECTED: 2, READ: 9}, 0)
        skips.update({REJECTED: 2, READ: 9}, 0)
        assert part.reasons(0) == [], "it was there before"
        skips.update({REJECTED: 5, READ: 9}, 0)
        skips.update({}, 0)
    (reason,) = part.reasons(0)
    assert reason.startswith("worker: 3 damaged offsets of p.rejected.users/1 were skipped: ")
    assert [(e["event"], e["topic"], e["partition"], e["count"]) for e in logs] == [
        ("log_skipped", *REJECTED, 2),
        ("log_skipped", *REJECTED, 3),
    ]
    assert metrics.registry.get_sample_value("buddy_log_skipped_offsets_total") == 5
