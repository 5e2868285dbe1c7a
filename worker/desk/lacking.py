"""What the desk's store lacks because a partition of the log is damaged."""

from __future__ import annotations

from typing import Final

from worker.desk.store import RejectionStore

_LACKS: Final = {
    "rejected": "its later rejections are missing here, also as causes of orphans",
    "accepted": "rejections that its later rows have settled count as open",
    "replays": "rejections that were sent again since count as open",
}
"""By kind of topic."""


def lacking(store: RejectionStore) -> list[str]:
    """A line about each damaged partition, and what the store lacks. Raises StateError."""
    first = len(store.names.prefix) + 1
    return [
        f"{line}; {_LACKS[topic[first:].split('.')[0]]}"
        for (topic, _), line in sorted(store.damage().items())
    ]
