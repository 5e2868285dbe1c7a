"""Metrics in which every method was called once."""

from __future__ import annotations

from schemas import ENTITIES
from worker.core.outbox import Tally
from worker.core.violations import Code
from worker.ops.desk_metrics import OpenIncident
from worker.ops.metrics import Metrics
from worker.stream import Partition

NOW = 1_700_000_000_000


def tally() -> Tally:
    counted = Tally()
    for number, entity in enumerate(ENTITIES, 1):
        counted.read[entity] = 100 * number
        counted.accepted[entity] = 90 * number
        counted.deleted[entity] = number
        counted.rejected[entity] = 9 * number
        counted.unknown_fields[entity] = 3
        counted.parked[entity] = 4
    counted.violations["users", "email", Code.INVALID_EMAIL] = 9
    counted.violations["users", "email", Code.EMAIL_LOWERCASED] = 2
    counted.arrivals[NOW - 2_000] = 3
    counted.arrivals[NOW + 1_000] = 2
    counted.records_omitted = ["buddy.in.users/0/7"]
    counted.failures = [("buddy.in.users/0/8", "KeyError")]
    return counted


def fed() -> Metrics:
    """Every method called once, so that every metric has a sample."""
    metrics = Metrics()
    users, matches = Partition("buddy.in.users", 0), Partition("buddy.in.matches", 1)
    metrics.tally(tally(), NOW)
    metrics.anomalies.input_expired("users", 5)
    metrics.anomalies.input_truncated("users", 6)
    metrics.anomalies.input_recreated()
    metrics.anomalies.clock_stepped()
    metrics.anomalies.accepted_recreated()
    metrics.anomalies.rejected_recreated()
    metrics.anomalies.internal_recreated()
    metrics.anomalies.parked_lost("users", 3)
    metrics.parked({"matches": 7, "users": 6}, 5_000, 12.5)
    metrics.lag({users: 3, matches: 4})
    metrics.frontier(6, 2.5, [users])
    metrics.round()
    metrics.batch(0.2, 300)
    metrics.transaction("fenced")
    metrics.index(10, 20, 9)
    metrics.tasks(3, 2)
    metrics.restored(1.5)
    metrics.anomalies.split_keys(2)
    metrics.sink.applied(changed=1, deleted=2, repeats=3)
    metrics.anomalies.foreign_rows("sink", 4)
    metrics.anomalies.foreign_rows("index", 5)
    metrics.anomalies.state_rebuilt("index", 2)
    metrics.sink.expired(1)
    metrics.sink.lag({Partition("buddy.accepted.users", 0): 8})
    metrics.sink.export(3.0, finished=True)
    metrics.sink.active(is_active=True)
    metrics.sink.schedules({"weekly": 1_767_225_600.0})
    standing_out = [("invalid_enum", "role", "crm")]
    metrics.desk.incidents({("users", "rejections"): OpenIncident(1_767_225_600.0, standing_out)})
    return metrics
