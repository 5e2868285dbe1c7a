"""Bulk observations count as the client's own histogram counts them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from worker.ops.histogram import BulkHistogram

BOUNDS = (0.5, 1.0, 10.0)


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.5, 0.75, 1.0, 9.0, 11.0)), st.integers(1, 5))))
def test_it_shows_what_the_clients_own_shows(observed: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    bulk = BulkHistogram("x", "text", BOUNDS, ours)
    single = Histogram("x", "text", buckets=BOUNDS, registry=theirs)
    for value, times in observed:
        bulk.observe(value, times)
        for _ in range(times):
            single.observe(value)
    shown = [
        {(s.name, s.labels.get("le")): s.value for m in registry.collect() for s in m.samples}
        for registry in (ours, theirs)
    ]
    created = {("x_created", None): shown[1].pop(("x_created", None))}
    assert created
    assert shown[0] == shown[1]
