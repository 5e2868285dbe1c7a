"""A broker in memory that fulfils `worker.brokers.contract` with Kafka's semantics.

Calm, it answers at once: the contract suite runs over it. With a `Network` of its own a process
meets latency, outages and answers that are lost; the cluster behind it stays the truth.
"""
