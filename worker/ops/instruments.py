"""Makes the instruments of a registry: counters, gauges and histograms, with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric

from schemas import ENTITIES
from worker.stream import Partition


class _Registry(CollectorRegistry):
    """Omits the `_created` series, which would double the number of series."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [s for s in metric.samples if not s.name.endswith("_created")]
            yield metric


class Instruments:
    """The instruments of one process. Each exists from the start with every value of its label."""

    def __init__(self) -> None:
        self.registry: Final = _Registry()

    def counter(self, name: str, text: str) -> Counter:
        """A counter without labels."""
        return Counter(name, text, registry=self.registry)

    def gauge(self, name: str, text: str) -> Gauge:
        """A gauge without labels."""
        return Gauge(name, text, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        """A histogram without labels."""
        return Histogram(name, text, registry=self.registry, buckets=buckets)

    def by_entity(self, name: str, text: str) -> dict[str, Counter]:
        """A counter for each entity."""
        return self.counters(name, text, "entity", tuple(ENTITIES))

    def counters(
        self, name: str, text: str, label: str, values: Sequence[str]
    ) -> dict[str, Counter]:
        """A counter for each value of a label."""
        counter = Counter(name, text, (label,), registry=self.registry)
        return {value: counter.labels(value) for value in values}

    def gauges(
        self, name: str, text: str, label: str, values: Sequence[str] | Mapping[str, object]
    ) -> dict[str, Gauge]:
        """A gauge for each value of a label."""
        gauge = Gauge(name, text, (label,), registry=self.registry)
        return {value: gauge.labels(value) for value in values}

    def by_partition(self, name: str, text: str) -> PartitionGauge:
        """A gauge by topic and partition."""
        return PartitionGauge(Gauge(name, text, ("topic", "partition"), registry=self.registry))


class PartitionGauge:
    """A gauge by partition. A partition that is no longer named is removed: another owns it."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._children: dict[Partition, Gauge] = {}

    def set(self, values: Mapping[Partition, int]) -> None:
        """Set the value of each partition."""
        for partition in self._children.keys() - values.keys():
            del self._children[partition]
            self._gauge.remove(partition.topic, partition.number)
        for partition, value in values.items():
            child = self._children.get(partition)
            if child is None:
                child = self._gauge.labels(partition.topic, partition.number)
                self._children[partition] = child
            child.set(value)
