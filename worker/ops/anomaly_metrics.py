"""Metrics of loss, damage, foreign messages, recreated topics and steps of the wall clock.

The rules are those of `worker.ops.metrics`.
"""

from __future__ import annotations

from typing import Literal

from worker.ops.instruments import Instruments


class AnomalyMetrics:
    """Faults that a worker or a sink finds in topics, in its state on disk and in its clock."""

    def __init__(self, make: Instruments) -> None:
        self._unreadable = make.counter(
            "buddy_unreadable_internal_messages",
            "Messages of internal topics that are none of the project's (skipped).",
        )
        self._expired = make.by_entity(
            "buddy_input_expired_records",
            "Records that were gone from an input before they were read.",
        )
        self._truncated = make.by_entity(
            "buddy_input_truncated_records",
            "Offsets of an input that had been read when the log lost its last records.",
        )
        self._recreated = make.counter(
            "buddy_input_recreated", "Partitions of inputs whose topic was created anew."
        )
        self._accepted_recreated = make.counter(
            "buddy_accepted_recreated", "Accepted topics that were created anew."
        )
        self._rejected_recreated = make.counter(
            "buddy_rejected_recreated", "Topics of rejections that were created anew."
        )
        self._internal_recreated = make.counter(
            "buddy_internal_recreated",
            "Partitions created anew of exports, export-requests, replays, internal"
            " (no claims, grants).",
        )
        self._split_keys = make.counter(
            "buddy_keys_in_two_partitions",
            "Versions of a key that came from another input partition than the one before.",
        )
        self._accepted_expired = make.counter(
            "buddy_accepted_expired_messages",
            "Offsets of accepted topics that were removed before the index read them.",
        )
        self._accepted_skipped = make.counter(
            "buddy_accepted_skipped_messages",
            "Damaged offsets that the index has skipped as somebody had said.",
        )
        self._accepted_truncated = make.counter(
            "buddy_accepted_truncated_messages",
            "Offsets that accepted topics have lost after this process had read them.",
        )
        self._internal_truncated = make.counter(
            "buddy_internal_truncated",
            "Partitions of internal topics that were found without their last messages.",
        )
        self._asked_again = make.counter(
            "buddy_reservation_requests_repeated",
            "Requests for unique addresses that were repeated, since nobody had replied.",
        )
        self._progress_lost = make.counter(
            "buddy_progress_lost", "Tasks that had worked before and were found without progress."
        )
        self._parked_lost = make.by_entity(
            "buddy_parked_lost_records",
            "Parked records that were gone when their task was taken over.",
        )
        self._clock_steps = make.counter(
            "buddy_clock_steps", "Times that the wall clock of this process was set."
        )
        self._skipped = make.by_entity(
            "buddy_input_skipped_records",
            "Damaged offsets of an input that were skipped as somebody had said.",
        )
        self._log_damaged = make.gauge(
            "buddy_log_damaged_places",
            "Places where the embedded log is damaged and was not skipped; on Kafka, partitions"
            " that this process cannot read.",
        )
        self._log_skipped = make.counter(
            "buddy_log_skipped_offsets",
            "Offsets of rejections or announcements that were damaged and skipped as somebody had"
            " said, or that were removed before the desk read them.",
        )
        self._foreign = make.counters(
            "buddy_foreign_rows",
            "Messages of accepted topics that are no rows of ours, refused by this reader.",
            "reader",
            ("index", "sink"),
        )
        self._hidden = make.counter(
            "buddy_hidden_rows",
            "Foreign messages that follow a row of the same key in an accepted topic: compaction"
            " removes the row.",
        )
        self._rebuilt = make.counters(
            "buddy_state_rebuilt",
            "Times that state on disk was thrown away, to be read anew from the topics.",
            "state",
            ("index", "store", "desk"),
        )

    def input_expired(self, entity: str, records: int) -> None:
        """Count records of an input that were gone before they were read."""
        self._expired[entity].inc(records)

    def input_truncated(self, entity: str, records: int) -> None:
        """Count offsets that had been read, and are gone from the end of an input."""
        self._truncated[entity].inc(records)

    def input_skipped(self, entity: str, records: int) -> None:
        """Count damaged records of an input that were skipped."""
        self._skipped[entity].inc(records)

    def input_recreated(self) -> None:
        """Count a partition of an input whose topic was created anew."""
        self._recreated.inc()

    def accepted_expired(self, messages: int) -> None:
        """Count messages of a topic of the index that were removed before it read them."""
        self._accepted_expired.inc(messages)

    def accepted_skipped(self, messages: int) -> None:
        """Count damaged offsets of a topic of the index, skipped on an operator's command."""
        self._accepted_skipped.inc(messages)

    def accepted_recreated(self) -> None:
        """Count an accepted topic of the index that was created anew."""
        self._accepted_recreated.inc()

    def rejected_recreated(self) -> None:
        """Count a topic of rejections that was created anew."""
        self._rejected_recreated.inc()

    def internal_recreated(self) -> None:
        """Count a topic with state of a task that was created anew."""
        self._internal_recreated.inc()

    def unreadable_internal(self, messages: int) -> None:
        """Count unreadable messages of internal topics that were skipped."""
        self._unreadable.inc(messages)

    def foreign_rows(self, reader: Literal["index", "sink"], rows: int) -> None:
        """Count messages of accepted topics that this reader refused: they are no rows of ours."""
        self._foreign[reader].inc(rows)

    def hidden_rows(self, rows: int) -> None:
        """Count foreign messages behind a row of their key, which compaction will remove."""
        self._hidden.inc(rows)

    def split_keys(self, versions: int) -> None:
        """Count versions of a key from another input partition than the version before."""
        self._split_keys.inc(versions)

    def log_damaged(self, places: int) -> None:
        """Set the number of known damaged places of the embedded log that were not skipped.

        On Kafka: the partitions that this process cannot read.
        """
        self._log_damaged.set(places)

    def log_skipped(self, offsets: int) -> None:
        """Count damaged offsets that were skipped in a topic that no service reads."""
        self._log_skipped.inc(offsets)

    def rejections_expired(self, offsets: int) -> None:
        """Count offsets of rejections that were removed before the desk read them."""
        self._log_skipped.inc(offsets)

    def accepted_truncated(self, offsets: int) -> None:
        """Count offsets of an accepted topic that had been read, and are gone."""
        self._accepted_truncated.inc(offsets)

    def internal_truncated(self) -> None:
        """Count a partition of an internal topic that has lost its last messages."""
        self._internal_truncated.inc()

    def asked_again(self, requests: int) -> None:
        """Count requests for addresses that were repeated."""
        self._asked_again.inc(requests)

    def progress_lost(self) -> None:
        """Count a task that has worked before and has no checkpoint."""
        self._progress_lost.inc()

    def parked_lost(self, entity: str, records: int) -> None:
        """Count parked records that were gone when their task was taken over."""
        self._parked_lost[entity].inc(records)

    def state_rebuilt(self, state: Literal["index", "store", "desk"], times: int) -> None:
        """Count rebuilds of the index, or of the store of sink or desk, from the topics."""
        self._rebuilt[state].inc(times)

    def clock_stepped(self) -> None:
        """Count a step of the wall clock."""
        self._clock_steps.inc()
